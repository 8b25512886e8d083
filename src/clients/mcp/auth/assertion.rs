//! Says who we are with a signature in place of a secret: `private_key_jwt` of RFC 7523 §2.2. The key is loaded and used
//! by the crypto provider that TLS has already.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SigningKey;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

/// How long an assertion is good for: the way to the server, and clocks that do not agree.
const LIFETIME: Duration = Duration::from_secs(120);

/// What keys can sign with, the names in JOSE, and for ECDSA the bytes of half a signature.
const ALGORITHMS: &[(SignatureScheme, &str, Option<usize>)] = &[
    (SignatureScheme::ECDSA_NISTP256_SHA256, "ES256", Some(32)),
    (SignatureScheme::ECDSA_NISTP384_SHA384, "ES384", Some(48)),
    (SignatureScheme::ED25519, "EdDSA", None),
    (SignatureScheme::ED25519, "Ed25519", None),
    (SignatureScheme::RSA_PKCS1_SHA256, "RS256", None),
    (SignatureScheme::RSA_PSS_SHA256, "PS256", None),
    (SignatureScheme::RSA_PKCS1_SHA384, "RS384", None),
    (SignatureScheme::RSA_PKCS1_SHA512, "RS512", None),
    (SignatureScheme::RSA_PSS_SHA384, "PS384", None),
    (SignatureScheme::RSA_PSS_SHA512, "PS512", None),
];

/// A private key that signs assertions.
pub(super) struct AssertionKey(Arc<dyn SigningKey>);

impl fmt::Debug for AssertionKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "AssertionKey({:?})", self.0.algorithm())
    }
}

impl AssertionKey {
    /// From PEM: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub(super) fn from_pem(pem: &SecretString) -> Result<Self, &'static str> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
            .map_err(|_| "holds no private key in PEM that is not encrypted")?;
        rustls::crypto::ring::sign::any_supported_type(&der).map(Self).map_err(
            |_| "holds a key that cannot be used; take EC P-256 or P-384, Ed25519, or RSA of 2048 bits and more",
        )
    }

    /// An assertion of `client` for `audience`, in an algorithm that the server takes; any if it does not say.
    pub(super) fn sign(
        &self,
        client: &str,
        audience: &str,
        key_id: Option<&str>,
        accepted: Option<&[String]>,
    ) -> Result<SecretString, String> {
        let accepts = |name: &str| accepted.is_none_or(|accepted| accepted.iter().any(|other| other == name));
        let usable = |(scheme, name, half): &(SignatureScheme, &'static str, Option<usize>)| {
            Some((accepts(name).then(|| self.0.choose_scheme(&[*scheme]))??, *name, *half))
        };
        let Some((signer, algorithm, half)) = ALGORITHMS.iter().find_map(usable) else {
            let accepted = accepted.unwrap_or_default().join(", ");
            return Err(format!("holds a key of another kind than the authorization server takes ({accepted})"));
        };
        let mut header = json!({"alg": algorithm, "typ": "JWT"});
        if let Some(key_id) = key_id {
            header["kid"] = Value::from(key_id);
        }
        let now = Timestamp::now().as_second();
        let claims = json!({
            "iss": client,
            "sub": client,
            "aud": audience,
            "iat": now,
            "exp": now + LIFETIME.as_secs() as i64,
            "jti": Uuid::now_v7().to_string(),
        });
        let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let failed = || String::from("holds a key that cannot sign");
        let signature = signer.sign(signed.as_bytes()).map_err(|_| failed())?;
        let signature = match half {
            Some(half) => fixed_length(&signature, half).ok_or_else(failed)?,
            None => signature,
        };
        Ok(SecretString::from(format!("{signed}.{}", encode(&signature))))
    }
}

/// An ECDSA signature as JOSE wants it, two numbers of fixed length, out of ASN.1 as TLS wants it: a sequence of two
/// integers, each with its length in one byte.
fn fixed_length(der: &[u8], half: usize) -> Option<Vec<u8>> {
    let [0x30, length, rest @ ..] = der else { return None };
    let (one, rest) = integer(rest.get(..usize::from(*length))?)?;
    let (two, rest) = integer(rest)?;
    let mut signature = vec![0; 2 * half];
    for (number, place) in [one, two].into_iter().zip(signature.chunks_exact_mut(half)) {
        let start = half.checked_sub(number.len())?;
        place[start..].copy_from_slice(number);
    }
    rest.is_empty().then_some(signature)
}

/// The next integer without its leading zeros, and what follows.
fn integer(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x02, length, rest @ ..] = der else { return None };
    let (number, rest) = rest.split_at_checked(usize::from(*length))?;
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    Some((&number[start..], rest))
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

    use super::*;

    const RSA: &str = include_str!("test_keys/rsa_pkcs1.pem");
    const SEC1: &str = include_str!("test_keys/ec_sec1.pem");
    const ENCRYPTED: &str = include_str!("test_keys/ec_encrypted.pem");

    fn pem(pkcs8: &[u8]) -> SecretString {
        let text = base64::prelude::BASE64_STANDARD.encode(pkcs8);
        SecretString::from(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
    }

    fn key(pem: &SecretString) -> AssertionKey {
        AssertionKey::from_pem(pem).unwrap_or_else(|error| panic!("{error}"))
    }

    fn decode(part: &str) -> Value {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON")
    }

    /// Header and claims of an assertion, after its signature was checked.
    fn checked(assertion: &SecretString, verified_by: &UnparsedPublicKey<impl AsRef<[u8]>>) -> (Value, Value) {
        let (signed, signature) = assertion.expose_secret().rsplit_once('.').expect("three parts");
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).expect("base64");
        verified_by.verify(signed.as_bytes(), &signature).expect("the signature is right");
        let (header, claims) = signed.split_once('.').expect("three parts");
        (decode(header), decode(claims))
    }

    #[test]
    fn an_assertion_says_who_we_are_to_whom_and_for_how_long() {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
        let public = pair.expect("a key").public_key().as_ref().to_vec();
        let verifier = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, public);
        let key = key(&pem(made.as_ref()));
        let mut seen = std::collections::HashSet::new();
        // Often enough for numbers of every length: a leading zero is dropped by one form and kept by the other.
        for _ in 0..600 {
            let assertion = key.sign("me", "https://id/t", Some("k1"), None).unwrap_or_else(|error| panic!("{error}"));
            let (header, claims) = checked(&assertion, &verifier);
            assert_eq!(header, json!({"alg": "ES256", "typ": "JWT", "kid": "k1"}));
            assert_eq!(
                (&claims["iss"], &claims["sub"], &claims["aud"]),
                (&json!("me"), &json!("me"), &json!("https://id/t"))
            );
            let now = Timestamp::now().as_second();
            let (issued, ends) = (claims["iat"].as_i64().expect("iat"), claims["exp"].as_i64().expect("exp"));
            assert!((now - 60..=now).contains(&issued) && ends - issued <= 300 && ends > now, "{claims}");
            assert!(seen.insert(claims["jti"].to_string()), "each assertion is used once");
        }
    }

    #[test]
    fn every_kind_of_key_signs_in_an_algorithm_that_the_server_takes() {
        let ed = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let public = Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key").public_key().as_ref().to_vec();
        let ed = key(&pem(ed.as_ref()));
        let verifier = UnparsedPublicKey::new(&signature::ED25519, public);
        let sign = |key: &AssertionKey, accepted: &[&str]| {
            let accepted: Vec<String> = accepted.iter().map(|name| (*name).to_owned()).collect();
            key.sign("me", "https://id", None, Some(&accepted))
        };
        for name in ["EdDSA", "Ed25519"] {
            let assertion = sign(&ed, &["RS256", name]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(checked(&assertion, &verifier).0["alg"], name);
        }
        let rsa = key(&SecretString::from(RSA));
        let spki = rsa.0.public_key().expect("it is known");
        // Behind the header of a key of 2048 bits.
        let public = spki[24..].to_vec();
        for (name, how) in [
            ("RS256", &signature::RSA_PKCS1_2048_8192_SHA256),
            ("PS256", &signature::RSA_PSS_2048_8192_SHA256),
            ("RS512", &signature::RSA_PKCS1_2048_8192_SHA512),
        ] {
            let assertion = sign(&rsa, &[name]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(checked(&assertion, &UnparsedPublicKey::new(how, &public)).0["alg"], name);
        }
        let error = sign(&rsa, &["ES256"]).expect_err("another kind of key");
        assert_eq!(error, "holds a key of another kind than the authorization server takes (ES256)");
        assert!(sign(&key(&SecretString::from(SEC1)), &["ES256"]).is_ok(), "as openssl writes them by default");
    }

    #[test]
    fn what_is_no_usable_key_says_so_and_nothing_else() {
        for (text, why) in [
            (ENCRYPTED, "not encrypted"),
            ("hunter2", "no private key"),
            ("", "no private key"),
            ("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "cannot be used"),
        ] {
            let error = AssertionKey::from_pem(&SecretString::from(text)).expect_err("no key");
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", key(&SecretString::from(RSA)));
        assert_eq!(shown, "AssertionKey(RSA)");
    }

    #[test]
    fn a_signature_that_is_none_is_no_signature() {
        for der in [&[][..], &[0x30, 0], &[0x30, 9, 2, 1, 1], &[0x30, 6, 2, 1, 1, 2, 9, 1], &[0x30, 3, 2, 1, 1]] {
            assert_eq!(fixed_length(der, 32), None, "{der:?}");
        }
        assert_eq!(fixed_length(&[0x30, 7, 2, 2, 0, 0x80, 2, 1, 5], 2), Some(vec![0, 0x80, 0, 5]));
    }
}
