use proptest::prelude::*;

use super::*;

const NODE: &str = "n1";

fn life() -> Life {
    Life { node: NODE.into(), incarnation: 7 }
}

fn at(boot: &str, seconds: u64) -> Moment {
    Moment { boot: boot.to_owned(), uptime: Duration::from_secs(seconds) }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn memory() -> Memory {
    let all = Arc::new(Candidates {
        nodes: [NODE, "n2"].map(Into::into).into(),
        preference: [("n2".into(), -3)].into(),
        interfaces: [(NODE.into(), ["eth0".to_owned()].into())].into(),
    });
    let one = Arc::new(Candidates { nodes: ["n2".into()].into(), ..Candidates::default() });
    let claim = |epoch, owner: &str| Claim { epoch, owner: owner.into(), incarnation: 5 };
    Memory {
        wanted: Wanted {
            version: 812,
            extent: Extent::Whole,
            addresses: BTreeMap::from([
                (ip("192.0.2.7"), Some(Arc::clone(&all))),
                (ip("192.0.2.8"), Some(one)),
                (ip("2001:db8::7"), Some(all)),
            ]),
            peers: Some(BTreeMap::from([("n2".into(), [ip("10.0.0.12"), ip("fd00::12")].into())])),
            draining: Some(false),
        },
        ownership: ownership::Memory {
            claims: BTreeMap::from([
                (ip("192.0.2.7"), claim(3, NODE)),
                // No longer wanted.
                (ip("192.0.2.99"), claim(9, "n2")),
            ]),
            handed_over: [ip("192.0.2.7"), ip("192.0.2.8")].into(),
        },
    }
}

fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("berth-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    directory
}

#[test]
fn what_is_written_is_read() {
    let octets = encode(&memory(), &life(), &at("boot", 100));
    let read = decode(&octets, NODE, &at("boot", 130)).unwrap();
    assert_eq!(read.incarnation, 7);
    assert_eq!(read.wanted, Some(memory().wanted));
    assert_eq!(read.ownership, memory().ownership);
    let text = String::from_utf8(octets).unwrap();
    assert_eq!(text.matches("candidates\":{").count(), 2, "each but once: {text}");
}

#[test]
fn without_a_word_of_the_planner_there_is_nothing_wanted() {
    let octets = encode(&Memory::default(), &life(), &Moment::default());
    let read = decode(&octets, NODE, &at("boot", 1)).unwrap();
    assert_eq!(read, Remembered { incarnation: 7, ..Remembered::default() });
}

#[test]
fn what_was_handed_over_is_asked_back_for_ten_minutes_of_one_start_of_the_node() {
    let octets = encode(&memory(), &life(), &at("boot", 1000));
    for (now, expected) in [
        (at("boot", 1000), 2),
        (at("boot", 1600), 2),
        (at("boot", 1601), 0),
        (at("boot", 999), 0),
        (at("another", 1100), 0),
        (Moment::default(), 0),
    ] {
        let read = decode(&octets, NODE, &now).unwrap();
        assert_eq!(read.ownership.handed_over.len(), expected, "{now:?}");
        assert_eq!(read.ownership.claims, memory().ownership.claims);
    }
}

#[test]
fn a_file_that_is_odd_is_not_used() {
    let good = String::from_utf8(encode(&memory(), &life(), &at("boot", 100))).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} in {good}");
        good.replacen(from, to, 1)
    };
    for (text, expected) in [
        (String::new(), "not written to its end"),
        (
            with("\"berth-speaker\":1", "\"berth-speaker\":2"),
            "format 2, this speaker knows format 1",
        ),
        ("{\"berth-speaker\":2,\"else\":{}}\n".to_owned(), "format 2"),
        ("{}\n".to_owned(), "line 1: missing field `berth-speaker`"),
        (with("\"node\":\"n1\"", "\"node\":\"n3\""), "it is node n3's"),
        (with("\"candidates\":1", "\"candidates\":2"), "line 6: no such candidates"),
        (with("\"epoch\":3", "\"epoch\":0"), "line 4: a claim of epoch 0"),
        (with("192.0.2.8", "192.0.2.256"), "line 6: invalid IP address"),
        (with("\"end\"", "\"finis\""), "unknown variant `finis`"),
        (format!("{good}{{}}\n"), "not written to its end"),
        (
            good.lines()
                .filter(|line| !line.contains("192.0.2.8"))
                .fold(String::new(), |all, line| all + line + "\n"),
            "not written to its end",
        ),
    ] {
        let error = decode(text.as_bytes(), NODE, &at("boot", 100)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}: {text}");
    }
    for length in 0..good.len() {
        decode(&good.as_bytes()[..length], NODE, &at("boot", 100)).unwrap_err();
    }
}

#[test]
fn the_newest_memory_is_in_the_file_at_the_end() {
    let directory = directory("memory");
    let store = || Store::new(directory.join("made"), NODE.into());
    assert_eq!(store().read(), None);
    let keeper = Keeper::start(store(), life(), Remembered::default(), || ()).unwrap();
    keeper.keep(Memory::default());
    keeper.keep(memory());
    keeper.finish();
    let read = store().read().unwrap();
    assert_eq!(read.wanted, Some(memory().wanted));
    assert_eq!(read.ownership, memory().ownership);

    // A later life remembers the one before even if nothing happens in it, and does not make what
    // was handed over any younger.
    let next = Life { incarnation: 8, ..life() };
    Keeper::start(store(), next, read.clone(), || ()).unwrap().finish();
    let again = store().read().unwrap();
    assert_eq!(again, Remembered { incarnation: 8, ..read });

    fs::write(store().file(), "{\"berth-spe").unwrap();
    assert_eq!(store().read(), None);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_stops_nobody() {
    let directory = directory("no-directory");
    fs::write(&directory, "a file").unwrap();
    let store = Store::new(directory.clone(), NODE.into());
    assert_eq!(store.read(), None);
    let keeper = Keeper::start(store, life(), Remembered::default(), || ()).unwrap();
    keeper.keep(memory());
    keeper.finish();
    fs::remove_file(directory).unwrap();
}

proptest! {
    #[test]
    fn a_changed_file_is_read_or_refused(at_octet: prop::sample::Index, octet: u8, cut: bool) {
        let mut octets = encode(&memory(), &life(), &at("boot", 100));
        let place = at_octet.index(octets.len());
        octets[place] = octet;
        if cut {
            octets.truncate(place + 1);
        }
        let _ = decode(&octets, NODE, &at("boot", 100));
    }

    #[test]
    fn octets_that_nobody_vouches_for_are_refused(octets: Vec<u8>) {
        prop_assert!(decode(&octets, NODE, &at("boot", 100)).is_err());
    }
}

#[test]
fn a_shared_directory_is_a_groups_with_what_its_owner_has_in_it() {
    let directory = std::env::temp_dir().join(format!("berth-shared-{}", std::process::id()));
    fs::create_dir_all(directory.join("folder")).unwrap();
    let file = directory.join("speaker.jsonl");
    fs::write(&file, "{}").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let link = directory.join("link");
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    let group = fs::metadata(&directory).unwrap().gid();
    share(&directory, group).unwrap();
    for (path, mode) in [(&directory, 0o770), (&file, 0o660)] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (mode, group), "{}", path.display());
    }
    let elsewhere = share(&directory.join("none"), group);
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(elsewhere.unwrap_err().kind(), io::ErrorKind::NotFound);
}
