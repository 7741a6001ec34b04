//! The tunnel's AEAD, ChaCha20-Poly1305 (RFC 8439), as snow wants it: portable code, or with the feature `ring` that crate's
//! assembler, which takes a third of the time. Both write the same bytes.

#[cfg(feature = "ring")]
pub(super) use fast::ChaChaPoly;
#[cfg(not(feature = "ring"))]
pub(super) use portable::ChaChaPoly;

/// Noise, section 12.3: 32 bits of zeros, then the nonce in little-endian.
fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

#[cfg(any(test, not(feature = "ring")))]
mod portable {
    use chacha20poly1305::aead::inout::InOutBuf;
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
    use snow::Error;
    use snow::types::Cipher;

    use super::super::noise::TAG;
    use super::nonce;

    pub struct ChaChaPoly(ChaCha20Poly1305);

    impl ChaChaPoly {
        pub fn new(key: &[u8; 32]) -> Self {
            ChaChaPoly(ChaCha20Poly1305::new(&(*key).into()))
        }
    }

    impl Cipher for ChaChaPoly {
        fn name(&self) -> &'static str {
            "ChaChaPoly"
        }

        fn set(&mut self, key: &[u8; 32]) {
            *self = ChaChaPoly::new(key);
        }

        /// Writes nothing and says 0 when `out` is too small, which snow's callers exclude.
        fn encrypt(&self, number: u64, associated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
            let Some((text, rest)) = out.split_at_mut_checked(plain.len()) else {
                return 0;
            };
            let Some(tag_out) = rest.get_mut(..TAG) else {
                return 0;
            };
            let Ok(buffer) = InOutBuf::new(plain, text) else {
                return 0;
            };
            let Ok(tag) = self
                .0
                .encrypt_inout_detached(&nonce(number).into(), associated, buffer)
            else {
                return 0;
            };
            tag_out.copy_from_slice(&tag);
            plain.len() + TAG
        }

        fn decrypt(
            &self,
            number: u64,
            associated: &[u8],
            sealed: &[u8],
            out: &mut [u8],
        ) -> Result<usize, Error> {
            let length = sealed.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
            let (text, tag) = sealed.split_at(length);
            let tag: [u8; TAG] = tag.try_into().map_err(|_| Error::Decrypt)?;
            let out = out.get_mut(..length).ok_or(Error::Decrypt)?;
            let buffer = InOutBuf::new(text, out).map_err(|_| Error::Decrypt)?;
            self.0
                .decrypt_inout_detached(&nonce(number).into(), associated, buffer, &tag.into())
                .map_err(|_| Error::Decrypt)?;
            Ok(length)
        }
    }
}

#[cfg(feature = "ring")]
mod fast {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
    use snow::Error;
    use snow::types::Cipher;

    use super::super::noise::TAG;
    use super::nonce;

    /// No key only if the library refuses 32 bytes, which it does not; then nothing can be sealed or opened.
    pub struct ChaChaPoly(Option<LessSafeKey>);

    impl ChaChaPoly {
        pub fn new(key: &[u8; 32]) -> Self {
            ChaChaPoly(
                UnboundKey::new(&CHACHA20_POLY1305, key)
                    .ok()
                    .map(LessSafeKey::new),
            )
        }
    }

    impl Cipher for ChaChaPoly {
        fn name(&self) -> &'static str {
            "ChaChaPoly"
        }

        fn set(&mut self, key: &[u8; 32]) {
            *self = ChaChaPoly::new(key);
        }

        /// Writes nothing and says 0 when `out` is too small, which snow's callers exclude.
        fn encrypt(&self, number: u64, associated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
            let (Some(key), Some((text, rest))) = (&self.0, out.split_at_mut_checked(plain.len()))
            else {
                return 0;
            };
            let Some(tag_out) = rest.get_mut(..TAG) else {
                return 0;
            };
            text.copy_from_slice(plain);
            let nonce = Nonce::assume_unique_for_key(nonce(number));
            match key.seal_in_place_separate_tag(nonce, Aad::from(associated), text) {
                Ok(tag) => tag_out.copy_from_slice(tag.as_ref()),
                Err(_) => return 0,
            }
            plain.len() + TAG
        }

        fn decrypt(
            &self,
            number: u64,
            associated: &[u8],
            sealed: &[u8],
            out: &mut [u8],
        ) -> Result<usize, Error> {
            let key = self.0.as_ref().ok_or(Error::Decrypt)?;
            let length = sealed.len().checked_sub(TAG).ok_or(Error::Decrypt)?;
            let (text, tag) = sealed.split_at(length);
            let tag = Tag::try_from(tag).map_err(|_| Error::Decrypt)?;
            let out = out.get_mut(..length).ok_or(Error::Decrypt)?;
            out.copy_from_slice(text);
            let nonce = Nonce::assume_unique_for_key(nonce(number));
            key.open_in_place_separate_tag(nonce, Aad::from(associated), tag, out, 0..)
                .map_err(|_| Error::Decrypt)?;
            Ok(length)
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use snow::types::Cipher;

    use super::*;

    /// Compares the cipher in use with the portable one (they are the same without the feature `ring`).
    #[test]
    fn both_ciphers_write_the_same_bytes() {
        let key = core::array::from_fn(|i| i as u8);
        let (ours, theirs) = (ChaChaPoly::new(&key), portable::ChaChaPoly::new(&key));
        for len in [0, 1, 15, 16, 63, 64, 65, 255, 1432] {
            let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let (mut a, mut b) = (vec![0; len + 16], vec![0; len + 16]);
            assert_eq!(ours.encrypt(77, b"ad", &plain, &mut a), len + 16);
            assert_eq!(theirs.encrypt(77, b"ad", &plain, &mut b), len + 16);
            assert_eq!(a, b);
            let mut back = vec![0; len];
            assert_eq!(ours.decrypt(77, b"ad", &b, &mut back).unwrap(), len);
            assert_eq!(back, plain);
            assert!(ours.decrypt(78, b"ad", &b, &mut back).is_err());
            b[len] ^= 1;
            assert!(ours.decrypt(77, b"ad", &b, &mut back).is_err());
            assert_eq!(ours.encrypt(77, b"ad", &plain, &mut a[..len + 15]), 0);
        }
    }
}
