//! Free addresses of one range as intervals, and numbers for addresses. Knows no pool and no
//! Service.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use config::AddressRange;

use crate::service::Family;

/// One value for each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    pub v4: T,
    pub v6: T,
}

impl<T> std::ops::Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> std::ops::IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// Free addresses of one range as disjoint intervals, both ends included.
#[derive(Debug, Clone)]
pub struct FreeList {
    /// The first address of an interval by its last: taking the lowest address, which happens most,
    /// changes no key.
    intervals: BTreeMap<u128, u128>,
    /// Leave out numbers that end in 0 or 255. No interval begins or ends with one, so that the
    /// lowest free address is always the start of the first interval.
    skip_buggy: bool,
}

impl FreeList {
    /// All of `range`, without the IPv4 addresses that `avoidBuggyIPs` leaves out if it is set.
    pub fn new(range: &AddressRange, avoid_buggy_ips: bool) -> Self {
        let skip_buggy = avoid_buggy_ips && range.is_ipv4();
        let mut list = Self { intervals: BTreeMap::new(), skip_buggy };
        list.insert(number(range.first), number(range.last));
        list
    }

    /// Takes away everything from `first` to `last`.
    pub fn subtract(&mut self, first: u128, last: u128) {
        let touched: Vec<(u128, u128)> = self
            .intervals
            .range(first..)
            .map(|(end, start)| (*start, *end))
            .take_while(|(start, _)| *start <= last)
            .collect();
        for (start, end) in touched {
            self.intervals.remove(&end);
            if start < first {
                self.insert(start, first - 1);
            }
            if last < end {
                self.insert(last + 1, end);
            }
        }
    }

    /// How many addresses are free; all of `::/0` count as one less than they are.
    pub fn size(&self) -> u128 {
        self.intervals.iter().map(|(last, first)| size(*first, *last, self.skip_buggy)).sum()
    }

    pub fn lowest(&self) -> Option<u128> {
        self.intervals.first_key_value().map(|(_, first)| *first)
    }

    pub fn contains(&self, number: u128) -> bool {
        let interval = self.intervals.range(number..).next();
        interval.is_some_and(|(_, first)| *first <= number)
            && !(self.skip_buggy && is_buggy(number))
    }

    /// The lowest free address that is not below `number`.
    pub fn next_from(&self, number: u128) -> Option<u128> {
        let (_, first) = self.intervals.range(number..).next()?;
        let mut next = number.max(*first);
        // Both ends of an interval are usable, so this ends inside of it.
        while self.skip_buggy && is_buggy(next) {
            next += 1;
        }
        Some(next)
    }

    pub fn take(&mut self, number: u128) {
        let Some((&last, first)) = self.intervals.range_mut(number..).next() else { return };
        let start = *first;
        if number < start {
            return;
        }
        if number < last {
            let mut next = number + 1;
            while self.skip_buggy && is_buggy(next) {
                next += 1;
            }
            *first = next;
        } else {
            self.intervals.remove(&last);
        }
        if start < number {
            self.insert(start, number - 1);
        }
    }

    pub fn give(&mut self, number: u128) {
        let before = number.checked_sub(1).and_then(|before| self.intervals.remove(&before));
        let first = before.unwrap_or(number);
        match self.intervals.range_mut(number..).next() {
            Some((_, after)) if Some(*after) == number.checked_add(1) => *after = first,
            _ => self.insert(first, number),
        }
    }

    fn insert(&mut self, mut first: u128, mut last: u128) {
        if self.skip_buggy {
            while first <= last && is_buggy(first) {
                first += 1;
            }
            while last > first && is_buggy(last) {
                last -= 1;
            }
        }
        if first <= last {
            self.intervals.insert(last, first);
        }
    }
}

/// Addresses from `first` to `last`, at most `u128::MAX`.
pub fn size(first: u128, last: u128, skip_buggy: bool) -> u128 {
    let all = (last - first).saturating_add(1);
    // How many numbers below `end` are `rest` modulo 256.
    let below = |end: u128, rest: u128| end / 256 + u128::from(end % 256 > rest);
    let buggy = |rest| below(last + 1, rest) - below(first, rest);
    if skip_buggy { all - buggy(0) - buggy(255) } else { all }
}

/// True for IPv4 addresses that end in .0 or .255.
pub fn is_buggy(number: u128) -> bool {
    matches!(number % 256, 0 | 255)
}

pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let number = u32::try_from(number).expect("made from an IPv4 address");
            IpAddr::V4(Ipv4Addr::from(number))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture::ip;

    fn list(first: &str, last: &str, avoid_buggy_ips: bool) -> FreeList {
        FreeList::new(&AddressRange { first: ip(first), last: ip(last) }, avoid_buggy_ips)
    }

    #[test]
    fn sizes_leave_out_what_is_not_used() {
        for (first, last, avoid, expected) in [
            ("192.0.2.0", "192.0.2.255", false, 256),
            ("192.0.2.0", "192.0.2.255", true, 254),
            ("192.0.2.255", "192.0.3.0", true, 0),
            ("192.0.2.7", "192.0.2.7", true, 1),
            ("0.0.0.0", "255.255.255.255", true, (1 << 32) - (1 << 25)),
            ("2001:db8::", "2001:db8::ff", true, 256),
            ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false, u128::MAX),
        ] {
            assert_eq!(list(first, last, avoid).size(), expected, "{first}-{last}");
        }
    }

    #[test]
    fn the_ends_of_the_address_space_can_be_taken_and_given() {
        let mut all = list("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false);
        for end in [0, u128::MAX] {
            all.take(end);
            assert!(!all.contains(end));
        }
        assert_eq!((all.lowest(), all.next_from(u128::MAX)), (Some(1), None));
        for end in [0, u128::MAX] {
            all.give(end);
            assert!(all.contains(end));
        }
        assert_eq!(all.intervals.len(), 1);
        all.subtract(0, u128::MAX);
        assert_eq!(all.lowest(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u128),
        Give(u128),
        Subtract(u128, u128),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let at = 0xC000_02F0_u128..0xC000_0310;
        prop_oneof![
            5 => at.clone().prop_map(Step::Take),
            5 => at.clone().prop_map(Step::Give),
            1 => (at, 0u128..9).prop_map(|(first, more)| Step::Subtract(first, first + more)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(
            avoid in any::<bool>(),
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            // 192.0.2.250 to 192.0.3.5.
            let numbers = 0xC000_02FA_u128..=0xC000_0305;
            let mut list = list("192.0.2.250", "192.0.3.5", avoid);
            let usable: BTreeSet<u128> =
                numbers.clone().filter(|number| !(avoid && is_buggy(*number))).collect();
            let mut model = usable.clone();
            for step in steps {
                match step {
                    Step::Take(number) => {
                        list.take(number);
                        model.remove(&number);
                    }
                    Step::Give(number) if usable.contains(&number) && !model.contains(&number) => {
                        list.give(number);
                        model.insert(number);
                    }
                    Step::Give(_) => {}
                    Step::Subtract(first, last) => {
                        list.subtract(first, last);
                        model.retain(|number| *number < first || last < *number);
                    }
                }
                prop_assert_eq!(list.lowest(), model.first().copied());
                prop_assert_eq!(list.size(), model.len() as u128);
                for number in 0xC000_02F0_u128..0xC000_0310 {
                    prop_assert_eq!(list.contains(number), model.contains(&number));
                    prop_assert_eq!(list.next_from(number), model.range(number..).next().copied());
                }
            }
        }
    }
}
