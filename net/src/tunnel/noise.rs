//! Noise IK between pinned keys: the cryptography that `snow` is given, and the two handshake messages.
//!
//! Not the handshake's timing and state (`handshake`), not packets (`wire`).

use alloc::boxed::Box;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng};
use sha2::{Digest, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState, StatelessTransportState};

use super::cipher::ChaChaPoly;

/// Bytes that AEAD adds (RFC 8439).
pub(super) const TAG: usize = 16;
const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"outpost tunnel";

/// First message of IK without payload: ephemeral key, encrypted static key, tag.
pub(super) const FIRST: usize = 32 + 32 + TAG + TAG;
/// Second message of IK without payload: ephemeral key, tag.
pub(super) const SECOND: usize = 32 + TAG;

/// The tunnel's random numbers, all from the seed that was handed in.
pub(super) struct Random32(ChaCha20Rng);

impl Random32 {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Random32(ChaCha20Rng::from_seed(seed))
    }

    pub(super) fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fork(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }
}

/// The public key that belongs to an X25519 private key.
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(*private, x25519_dalek::X25519_BASEPOINT_BYTES)
}

/// Key of the first message's MAC: whoever makes a good one knows the public key of the box it addresses.
pub(super) fn mac_key(public: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"outpost tunnel mac");
    hash.update(public);
    hash.finalize().into()
}

/// HMAC-SHA-256 (RFC 2104) of `message`, cut to 16 bytes.
pub(super) fn mac(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (b, k) in block.iter_mut().zip(key) {
            *b ^= k;
        }
        block
    };
    let mut inner = Sha256::new();
    inner.update(pad(0x36));
    inner.update(message);
    let mut outer = Sha256::new();
    outer.update(pad(0x5c));
    outer.update(inner.finalize());
    let full: [u8; 32] = outer.finalize().into();
    let mut cut = [0; 16];
    cut.copy_from_slice(&full[..16]);
    cut
}

/// An initiator's handshake.
pub(super) fn initiator(
    random: &mut Random32,
    private: &[u8; 32],
    peer: &[u8; 32],
) -> Result<HandshakeState, Error> {
    builder(random)?
        .local_private_key(private)?
        .remote_public_key(peer)?
        .prologue(PROLOGUE)?
        .build_initiator()
}

/// A responder's handshake; who the initiator is shows in its first message.
pub(super) fn responder(
    random: &mut Random32,
    private: &[u8; 32],
) -> Result<HandshakeState, Error> {
    builder(random)?
        .local_private_key(private)?
        .prologue(PROLOGUE)?
        .build_responder()
}

fn builder<'a>(random: &mut Random32) -> Result<Builder<'a>, Error> {
    Ok(Builder::with_resolver(
        PATTERN.parse()?,
        Box::new(Resolver(random.fork())),
    ))
}

/// The keys of one handshake. Nonces are the caller's: the packet number.
pub(super) struct Keys(StatelessTransportState);

impl Keys {
    pub(super) fn new(state: HandshakeState) -> Result<Self, Error> {
        state.into_stateless_transport_mode().map(Keys)
    }

    /// Encrypts `plain` into `out`; the length is that of `plain` and [`TAG`].
    pub(super) fn seal(&self, number: u64, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.0.write_message(number, plain, out)
    }

    /// Checks and decrypts `sealed` into `out`.
    pub(super) fn open(&self, number: u64, sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.0.read_message(number, sealed, out)
    }
}

struct Resolver([u8; 32]);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(HandshakeRandom(ChaCha20Rng::from_seed(self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<HashSha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly)
            .then(|| Box::new(ChaChaPoly::new(&[0; 32])) as Box<dyn Cipher>)
    }
}

struct HandshakeRandom(ChaCha20Rng);

impl Random for HandshakeRandom {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(out);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: [u8; 32],
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        let mut key = [0; 32];
        for (k, p) in key.iter_mut().zip(private) {
            *k = *p;
        }
        self.private = key;
        self.public = public_key(&key);
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut key = [0; 32];
        random.try_fill_bytes(&mut key)?;
        self.set(&key);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public: [u8; 32] = public
            .get(..32)
            .and_then(|p| p.try_into().ok())
            .ok_or(Error::Dh)?;
        let shared = x25519_dalek::x25519(self.private, public);
        // A point of small order gives zero whatever our key is (RFC 7748, section 6.1).
        if shared == [0; 32] {
            return Err(Error::Dh);
        }
        out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(&shared);
        Ok(())
    }
}

#[derive(Default)]
struct HashSha256(Sha256);

impl Hash for HashSha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Sha256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let digest = core::mem::take(&mut self.0).finalize();
        for (o, d) in out.iter_mut().zip(digest) {
            *o = d;
        }
    }
}
