//! `cargo xtask keygen` and `cargo xtask config check`: what a person needs to write an `outpost.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outpost_config::{Config, Role};
use x25519_dalek::{PublicKey, StaticSecret};

/// A pair of X25519 keys, in base64.
#[derive(Clone)]
pub struct KeyPair {
    /// Stays on its box.
    pub private: String,
    /// Goes to the peers.
    pub public: String,
}

impl KeyPair {
    /// A new pair from the system's random numbers.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate() -> Result<KeyPair> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).context("the system gives no random numbers")?;
        Ok(KeyPair::from_secret(secret))
    }

    fn from_secret(secret: [u8; 32]) -> KeyPair {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret);
        KeyPair {
            private: STANDARD.encode(secret.to_bytes()),
            public: STANDARD.encode(public.as_bytes()),
        }
    }
}

/// `cargo xtask keygen`.
///
/// # Errors
/// When the system gives no random numbers.
pub fn keygen() -> Result<()> {
    let pair = KeyPair::generate()?;
    println!("# In this box's outpost.toml:");
    println!("private_key = \"{}\"", pair.private);
    println!("# In its peer's, under [[peer]]:");
    println!("public_key = \"{}\"", pair.public);
    Ok(())
}

/// `cargo xtask config …`
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check an outpost.toml with the code that the box reads it with
    Check {
        /// The file to check
        file: PathBuf,
    },
}

/// Runs a `cargo xtask config` command.
///
/// # Errors
/// What is wrong in the file, with its line.
pub fn config(command: &ConfigCommand) -> Result<()> {
    let ConfigCommand::Check { file } = command;
    println!("{}", check(file)?);
    Ok(())
}

fn check(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let config =
        Config::parse_bytes(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let public = KeyPair::from_secret(config.private_key.0).public;
    let role = match config.role {
        Role::Branch => "a branch",
        Role::Core => "a head office (core)",
    };
    let mut text = format!(
        "{} is right: {role} at {}\n",
        file.display(),
        config.management.address
    );
    text.push_str(&format!("its public key, for its peers: {public}\n"));
    for peer in &config.peers {
        let prefixes: Vec<String> = peer.prefixes.iter().map(ToString::to_string).collect();
        match peer.endpoint {
            Some(endpoint) => text.push_str(&format!(
                "peer {} at {endpoint} serves {}\n",
                peer.name,
                prefixes.join(", ")
            )),
            None => text.push_str(&format!("peer {} may call\n", peer.name)),
        }
    }
    match &config.guest {
        Some(guest) => text.push_str(&format!("guest {} in {}", guest.name, guest.memory)),
        None => text.push_str("no guest"),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_that_of_rfc_7748() {
        // Section 6.1: Alice's pair.
        let mut alice = [0; 32];
        hex::decode_to_slice(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            &mut alice,
        )
        .unwrap();
        let public = STANDARD.decode(KeyPair::from_secret(alice).public).unwrap();
        assert_eq!(
            hex::encode(public),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }

    #[test]
    fn two_pairs_differ_and_are_taken_by_the_parser() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_ne!(one.private, two.private);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outpost.toml");
        let text = format!(
            "role = \"branch\"\nprivate_key = \"{}\"\n[management]\naddress = \"10.77.1.1/16\"\n[[peer]]\nname = \"head\"\n\
             public_key = \"{}\"\nendpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n",
            one.private, two.public
        );
        std::fs::write(&file, &text).unwrap();
        let report = check(&file).unwrap();
        assert!(
            report.contains(&one.public) && report.contains("10.77.2.0/24"),
            "{report}"
        );
        std::fs::write(&file, text.replace("role", "rôle")).unwrap();
        let error = check(&file).unwrap_err().to_string();
        assert!(
            error.contains("line 1") && error.contains("outpost.toml"),
            "{error}"
        );
    }
}
