//! Octets as a stream of BGP messages: whatever they are, the decoder ends, and an OPEN that it
//! understood is one that it can write.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let [internal, four_octet_as] = [1, 2].map(|bit| first & bit != 0);
    let messages = bgp::fuzz::decode(bytes, internal, four_octet_as);
    assert!(messages <= bytes.len() / 19, "{messages} messages in {} octets", bytes.len());
});
