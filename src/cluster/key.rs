//! The secret that all processes of a cluster share.

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::ClusterError;

/// A shared secret, as the key of HMAC-SHA256. Never shown.
#[derive(Clone)]
pub struct Key(hmac::Key);

/// A message authentication code.
pub(super) type Mac = [u8; 32];

/// Random bytes that are used once.
pub(super) type Nonce = [u8; 32];

impl Key {
    /// Shorter keys can be guessed.
    pub const BYTES_MIN: usize = 16;

    /// The key made of `secret`. White space at its end does not count, so that a file may end with a
    /// line feed.
    ///
    /// # Errors
    /// [`ClusterError::ShortKey`] below [`Key::BYTES_MIN`] bytes.
    pub fn new(secret: &[u8]) -> Result<Self, ClusterError> {
        let secret = secret.trim_ascii_end();
        if secret.len() < Self::BYTES_MIN {
            return Err(ClusterError::ShortKey { bytes: secret.len() });
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// A secret that nobody has had before, in hexadecimal.
    ///
    /// # Errors
    /// [`ClusterError::System`] where the system has no random numbers.
    pub fn random_secret() -> Result<String, ClusterError> {
        Ok(nonce()?.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The code of `parts`, end to end, in the voice of `speaker`.
    pub(super) fn sign(&self, speaker: &str, parts: &[&[u8]]) -> Mac {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(speaker.as_bytes());
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether `mac` is [`Key::sign`] of the same. Takes the same time wherever they differ.
    pub(super) fn is_signed(&self, speaker: &str, parts: &[&[u8]], mac: &Mac) -> bool {
        let message = [&[speaker.as_bytes()], parts].concat().concat();
        hmac::verify(&self.0, &message, mac).is_ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

pub(super) fn nonce() -> Result<Nonce, ClusterError> {
    let mut nonce = [0; 32];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| ClusterError::System(std::io::Error::other("no random numbers")))?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_speaker_and_words_are_signed() {
        let (key, other) = (Key::new(&[7; 16]).unwrap(), Key::new(&[8; 16]).unwrap());
        let mac = key.sign("listener", &[b"ab", b"c"]);
        assert!(key.is_signed("listener", &[b"a", b"bc"], &mac));
        assert!(!key.is_signed("dialer", &[b"a", b"bc"], &mac));
        assert!(!key.is_signed("listener", &[b"abd"], &mac));
        assert!(!other.is_signed("listener", &[b"abc"], &mac));
    }

    #[test]
    fn short_keys_are_refused_and_none_is_shown() {
        let error = Key::new(b"fifteen bytes..\n").unwrap_err();
        assert!(matches!(error, ClusterError::ShortKey { bytes: 15 }));
        let secret = Key::random_secret().unwrap();
        assert_eq!(secret.len(), 64);
        assert!(!format!("{:?}", Key::new(secret.as_bytes()).unwrap()).contains(&secret));
    }
}
