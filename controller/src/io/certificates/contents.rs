//! The contents of the webhook's Secret: made, read and renewed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use shell::tls::{certificates, certified_key};

use crate::certificates::{AUTHORITY_LIFETIME, LEAF_LIFETIME, Signer, Validity};

/// The keys of the Secret, as MetalLB's certificate controller has them.
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Certificates are good since so long before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// Subject of every authority that is made here; they differ in their keys.
const AUTHORITY_NAME: &str = "Berth webhook authority";

/// Everything as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    /// One certificate or more, the newest first: what API servers are to trust.
    pub authorities: String,
    /// Of the newest authority.
    authority_key: String,
    pub leaf: String,
    pub leaf_key: String,
}

impl Contents {
    /// A new authority and a leaf for `names`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn make(names: &[String], now: SystemTime) -> Result<Self> {
        let (authority, key) = authority(now)?;
        let (leaf, leaf_key) = leaf(&key, names, now)?;
        Ok(Self { authorities: authority, authority_key: key.serialize_pem(), leaf, leaf_key })
    }

    /// A new authority before the one that was the newest; older ones go. The leaf stays.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn with_new_authority(&self, now: SystemTime) -> Result<Self> {
        let (authority, key) = authority(now)?;
        let before = first_certificate(&self.authorities);
        let authorities = format!("{authority}{before}");
        Ok(Self { authorities, authority_key: key.serialize_pem(), ..self.clone() })
    }

    /// A new leaf, of the newest authority.
    ///
    /// # Errors
    /// When the key of the authority cannot be used.
    pub fn with_new_leaf(&self, names: &[String], now: SystemTime) -> Result<Self> {
        let key = KeyPair::from_pem(&self.authority_key).context("the key of the authority")?;
        let (leaf, leaf_key) = leaf(&key, names, now)?;
        Ok(Self { leaf, leaf_key, ..self.clone() })
    }

    /// # Errors
    /// Which key of the Secret is missing or no text.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self> {
        let text = |key: &str| {
            let bytes = data.get(key).with_context(|| format!("{key} is missing"))?;
            String::from_utf8(bytes.0.clone()).with_context(|| format!("{key} is no text"))
        };
        Ok(Self {
            authorities: text(CA_CERTIFICATE)?,
            authority_key: text(CA_KEY)?,
            leaf: text(CERTIFICATE)?,
            leaf_key: text(KEY)?,
        })
    }

    /// What goes into the Secret.
    pub fn into_data(self) -> BTreeMap<String, ByteString> {
        [
            (CA_CERTIFICATE, self.authorities),
            (CA_KEY, self.authority_key),
            (CERTIFICATE, self.leaf),
            (KEY, self.leaf_key),
        ]
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .into()
    }

    /// Until when this can be served to clients that ask for `names` and trust the authorities.
    ///
    /// # Errors
    /// Why it cannot be served at `now`.
    pub fn validity(&self, names: &[String], now: SystemTime) -> Result<Validity> {
        let authorities = certificates(self.authorities.as_bytes()).context(CA_CERTIFICATE)?;
        let newest = &authorities[..1];
        certified_key(self.authorities.as_bytes(), self.authority_key.as_bytes())
            .context("ca.crt and ca.key")?;
        let chain = certified_key(self.leaf.as_bytes(), self.leaf_key.as_bytes())
            .context("tls.crt and tls.key")?;
        let leaf = chain.end_entity_cert().context(CERTIFICATE)?.clone().into_owned();
        let signer = if verify(&leaf, newest, names, now).is_ok() {
            Signer::Newest
        } else {
            verify(&leaf, &authorities, names, now).context(CERTIFICATE)?;
            Signer::Older
        };
        let authority = not_after(&newest[0])?;
        ensure!(now < authority, "the authority in ca.crt has expired");
        Ok(Validity { authority, leaf: not_after(&leaf)?, signer })
    }
}

fn first_certificate(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.find(END).map_or(pem, |at| &pem[..at + END.len()])
}

fn authority(now: SystemTime) -> Result<(String, KeyPair)> {
    let mut params = authority_params();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key))
}

/// What signing with an authority needs to know of it besides the key.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf(authority_key: &KeyPair, names: &[String], now: SystemTime) -> Result<(String, String)> {
    let mut params = CertificateParams::new(names)?;
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LEAF_LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = names.first() {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let authority = authority_params();
    let signed = params.signed_by(&key, &Issuer::from_params(&authority, authority_key))?;
    Ok((signed.pem(), key.serialize_pem()))
}

/// As a client would do that trusts `authorities`.
///
/// # Errors
/// Why it would hang up.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
    names: &[String],
    now: SystemTime,
) -> Result<()> {
    let verifier = verifier(authorities)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH)?);
    for name in names {
        let name = ServerName::try_from(name.as_str())?;
        verifier.verify_server_cert(leaf, &[], &name, &[], now)?;
    }
    Ok(())
}

/// `notAfter`, which a verifier tells who is asked about the end of time.
fn not_after(certificate: &CertificateDer<'static>) -> Result<SystemTime> {
    let verifier = verifier(std::slice::from_ref(certificate))?;
    let name = ServerName::try_from("end.of.time")?;
    let end = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    match verifier.verify_server_cert(certificate, &[], &name, &[], end) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs())),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("the certificate never expires"),
    }
}

fn verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let provider = Arc::new(ring::default_provider());
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["hook.ns.svc", "hook.ns.svc.cluster.local"].map(str::to_owned).into()
    }

    /// Certificates have whole seconds.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn what_is_made_can_be_served_until_it_ends() {
        let made = Contents::make(&names(), now()).unwrap();
        let again = Contents::from_data(&made.clone().into_data()).unwrap();
        assert!(again == made);
        let fresh = Validity {
            authority: now() + AUTHORITY_LIFETIME,
            leaf: now() + LEAF_LIFETIME,
            signer: Signer::Newest,
        };
        let second = Duration::from_secs(1);
        for (at, servable) in [
            (now(), true),
            (now() - BACKDATED, true),
            (now() - BACKDATED - second, false),
            (now() + LEAF_LIFETIME, true),
            (now() + LEAF_LIFETIME + second, false),
        ] {
            assert_eq!(made.validity(&names(), at).ok(), servable.then(|| fresh.clone()), "{at:?}");
        }
        let longer = [names(), vec!["other.ns.svc".to_owned()]].concat();
        assert!(made.validity(&longer, now()).is_err(), "a name is missing");
    }

    #[test]
    fn renewal_never_leaves_what_is_trusted() {
        let made = Contents::make(&names(), now()).unwrap();
        let later = now() + LEAF_LIFETIME / 2;
        let renewed = made.with_new_leaf(&names(), later).unwrap();
        assert_eq!(renewed.authorities, made.authorities);
        let validity = renewed.validity(&names(), later).unwrap();
        assert_eq!(validity.leaf, later + LEAF_LIFETIME);
        assert_eq!(validity.signer, Signer::Newest);

        let joined = renewed.with_new_authority(later).unwrap();
        assert_eq!(joined.leaf, renewed.leaf);
        assert!(joined.authorities.ends_with(&made.authorities), "the old one is still trusted");
        let validity = joined.validity(&names(), later).unwrap();
        assert_eq!(validity.authority, later + AUTHORITY_LIFETIME);
        assert_eq!(validity.signer, Signer::Older);

        let switched = joined.with_new_leaf(&names(), later).unwrap();
        assert_eq!(switched.validity(&names(), later).unwrap().signer, Signer::Newest);
        let third = switched.with_new_authority(later).unwrap();
        assert_eq!(certificates(third.authorities.as_bytes()).unwrap().len(), 2);
        assert!(!third.authorities.contains(&made.authorities));
    }

    #[test]
    fn garbage_is_told_from_certificates() {
        let good = Contents::make(&names(), now()).unwrap();
        let other = Contents::make(&names(), now()).unwrap();
        let with = |key: &str, value: &str| {
            let mut data = good.clone().into_data();
            data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
            data
        };
        let mut missing = good.clone().into_data();
        missing.remove(CA_KEY);
        for (data, words) in [
            (BTreeMap::new(), "ca.crt is missing"),
            (missing, "ca.key is missing"),
            (with(CA_CERTIFICATE, ""), "ca.crt: there is no certificate"),
            (with(CA_CERTIFICATE, &good.leaf_key), "ca.crt: there is no certificate"),
            (with(CA_CERTIFICATE, &other.authorities), "ca.crt and ca.key: "),
            (with(CA_KEY, "garbage"), "ca.crt and ca.key: "),
            (with(CERTIFICATE, "-----BEGIN CERTIFICATE-----\ngarbage"), "tls.crt and tls.key: "),
            (with(CERTIFICATE, &other.leaf), "tls.crt and tls.key: "),
            (with(KEY, &other.leaf_key), "tls.crt and tls.key: "),
        ] {
            let read = Contents::from_data(&data).and_then(|read| read.validity(&names(), now()));
            let error = format!("{:#}", read.unwrap_err());
            assert!(error.starts_with(words), "{error} instead of {words}");
        }
        let mut strange = good.clone();
        strange.leaf.clone_from(&other.leaf);
        strange.leaf_key.clone_from(&other.leaf_key);
        let error = format!("{:#}", strange.validity(&names(), now()).unwrap_err());
        assert!(error.starts_with("tls.crt: "), "another authority signed it: {error}");
    }
}
