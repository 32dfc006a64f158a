//! BFDProfiles.

use std::time::Duration;

use crds::BFDAuthenticationType;

use crate::{
    Password,
    error::{Fault, Rule},
    secret::Secrets,
};

/// Unset fields have the defaults that MetalLB's users get (300 ms, 300 ms, 3, 50 ms, 254).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BfdProfile {
    pub name: String,
    /// 10 ms to 60 s
    pub receive_interval: Duration,
    /// 10 ms to 60 s
    pub transmit_interval: Duration,
    /// 2..=255
    pub detect_multiplier: u8,
    /// 10 ms to 60 s
    pub echo_interval: Duration,
    pub echo_mode: bool,
    pub passive_mode: bool,
    /// 1..=254; of packets of a peer several hops away.
    pub minimum_ttl: u8,
    pub authentication: Option<BfdAuthentication>,
}

/// How packets are authenticated (RFC 5880 section 6.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BfdAuthentication {
    pub kind: BFDAuthenticationType,
    pub key_id: u8,
    /// 1 to 16 bytes for MD5, 1 to 20 for SHA1.
    pub key: Password,
}

pub(crate) fn parse(
    name: &str,
    spec: &crds::BFDProfileSpec,
    secrets: Secrets<'_>,
) -> Result<BfdProfile, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut milliseconds = |field, value: Option<u32>, default| {
        let value = value.unwrap_or(default);
        Duration::from_millis(u64::from(crate::within(field, value, 10, 60_000, &mut faults)))
    };
    let receive_interval = milliseconds("spec.receiveInterval", spec.receive_interval, 300);
    let transmit_interval = milliseconds("spec.transmitInterval", spec.transmit_interval, 300);
    let echo_interval = milliseconds("spec.echoInterval", spec.echo_interval, 50);
    let detect_multiplier = spec.detect_multiplier.unwrap_or(3);
    let detect_multiplier =
        crate::within("spec.detectMultiplier", detect_multiplier, 2, 255, &mut faults);
    let minimum_ttl = spec.minimum_ttl.unwrap_or(254);
    let minimum_ttl = crate::within("spec.minimumTtl", minimum_ttl, 1, 254, &mut faults);
    let authentication = spec.authentication.as_ref();
    let authentication = authentication.and_then(|a| parse_authentication(a, secrets, &mut faults));
    let (Ok(detect_multiplier), Ok(minimum_ttl), true) =
        (u8::try_from(detect_multiplier), u8::try_from(minimum_ttl), faults.is_empty())
    else {
        return Err(faults);
    };
    Ok(BfdProfile {
        name: name.to_owned(),
        receive_interval,
        transmit_interval,
        detect_multiplier,
        echo_interval,
        echo_mode: spec.echo_mode.unwrap_or(false),
        passive_mode: spec.passive_mode.unwrap_or(false),
        minimum_ttl,
        authentication,
    })
}

fn parse_authentication(
    spec: &crds::BFDAuthentication,
    secrets: Secrets<'_>,
    faults: &mut Vec<Fault>,
) -> Option<BfdAuthentication> {
    const FIELD: &str = "spec.authentication.secret";
    let name = spec.secret.name.as_deref().unwrap_or_default();
    let key = match secrets.password(name) {
        _ if name.is_empty() => {
            faults.push(Fault::new(FIELD, Rule::NoKeySecret));
            return None;
        }
        Err(rule) => {
            faults.push(Fault::new(FIELD, rule));
            return None;
        }
        Ok(key) => key?,
    };
    // RFC 5880 sections 4.3 and 4.4.
    let max = match spec.kind {
        BFDAuthenticationType::KeyedMD5 | BFDAuthenticationType::MeticulousKeyedMD5 => 16,
        BFDAuthenticationType::KeyedSHA1 | BFDAuthenticationType::MeticulousKeyedSHA1 => 20,
    };
    if key.0.len() > max {
        faults.push(Fault::new(FIELD, Rule::KeyLength { secret: name.to_owned(), max }));
    }
    Some(BfdAuthentication { kind: spec.kind, key_id: spec.key_id, key })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::{Secret, peer::Missing};

    /// With a Secret "key" of 17 bytes.
    fn parsed(spec: &crds::BFDProfileSpec) -> Result<BfdProfile, Vec<Fault>> {
        let kind = "kubernetes.io/basic-auth".to_owned();
        let secret = Secret { kind, password: Some(Password("x".repeat(17))) };
        let now = BTreeMap::from([("key".to_owned(), secret)]);
        parse("p", spec, Secrets { now: &now, last: None, missing: Missing::Fault })
    }

    #[test]
    fn the_key_of_a_profile_is_in_a_secret() {
        for (kind, name, expected) in [
            ("MeticulousKeyedSHA1", "key", Ok(BFDAuthenticationType::MeticulousKeyedSHA1)),
            ("KeyedMD5", "key", Err("the key in Secret \"key\" is longer than 16 bytes")),
            ("KeyedSHA1", "none", Err("there is no Secret \"none\"")),
            ("KeyedSHA1", "", Err("name the Secret that holds the key")),
        ] {
            let spec = json!({ "authentication": {
                "type": kind, "keyID": 0, "secret": { "name": name } } });
            let parsed = parsed(&serde_json::from_value(spec).unwrap());
            match expected {
                Ok(expected) => {
                    let found = parsed.unwrap().authentication.unwrap();
                    assert_eq!((found.kind, found.key_id), (expected, 0));
                    assert_eq!(found.key.0.len(), 17);
                }
                Err(words) => {
                    let faults = parsed.unwrap_err();
                    assert_eq!(faults[0].field, "spec.authentication.secret");
                    let text = faults[0].rule.to_string();
                    assert!(text.contains(words), "{text}");
                }
            }
        }
    }

    #[test]
    fn unset_fields_have_defaults() {
        let profile = parsed(&crds::BFDProfileSpec::default()).unwrap();
        assert_eq!(
            profile,
            BfdProfile {
                name: "p".to_owned(),
                receive_interval: Duration::from_millis(300),
                transmit_interval: Duration::from_millis(300),
                detect_multiplier: 3,
                echo_interval: Duration::from_millis(50),
                echo_mode: false,
                passive_mode: false,
                minimum_ttl: 254,
                authentication: None,
            }
        );
    }

    #[test]
    fn every_field_out_of_range_is_named() {
        let faults = parsed(&crds::BFDProfileSpec {
            receive_interval: Some(9),
            transmit_interval: Some(60_001),
            detect_multiplier: Some(1),
            echo_interval: Some(u32::MAX),
            minimum_ttl: Some(255),
            ..Default::default()
        })
        .unwrap_err();
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.receiveInterval",
                "spec.transmitInterval",
                "spec.echoInterval",
                "spec.detectMultiplier",
                "spec.minimumTtl"
            ]
        );
    }
}
