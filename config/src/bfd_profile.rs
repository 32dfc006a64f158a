//! BFDProfiles.

use std::time::Duration;

use crate::error::{Fault, Rule};

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
}

pub(crate) fn parse(name: &str, spec: &crds::BFDProfileSpec) -> Result<BfdProfile, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut milliseconds = |field, value: Option<u32>, default| {
        Duration::from_millis(u64::from(within(field, value, default, 10, 60_000, &mut faults)))
    };
    let receive_interval = milliseconds("spec.receiveInterval", spec.receive_interval, 300);
    let transmit_interval = milliseconds("spec.transmitInterval", spec.transmit_interval, 300);
    let echo_interval = milliseconds("spec.echoInterval", spec.echo_interval, 50);
    let detect_multiplier =
        within("spec.detectMultiplier", spec.detect_multiplier, 3, 2, 255, &mut faults);
    let minimum_ttl = within("spec.minimumTtl", spec.minimum_ttl, 254, 1, 254, &mut faults);
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
    })
}

fn within(
    field: &str,
    value: Option<u32>,
    default: u32,
    min: u32,
    max: u32,
    faults: &mut Vec<Fault>,
) -> u32 {
    let value = value.unwrap_or(default);
    if !(min..=max).contains(&value) {
        faults.push(Fault::new(field, Rule::OutOfRange { value, min, max }));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_fields_have_defaults() {
        let profile = parse("p", &crds::BFDProfileSpec::default()).unwrap();
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
            }
        );
    }

    #[test]
    fn every_field_out_of_range_is_named() {
        let faults = parse(
            "p",
            &crds::BFDProfileSpec {
                receive_interval: Some(9),
                transmit_interval: Some(60_001),
                detect_multiplier: Some(1),
                echo_interval: Some(u32::MAX),
                minimum_ttl: Some(255),
                ..Default::default()
            },
        )
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
