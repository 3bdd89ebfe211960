//! A limit of answers for each client, so that questions with a forged source make us no weapon (response rate limiting).

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use ipnet::IpNet;

/// Clients told apart; those that share a place share its allowance, so that memory is bounded.
const PLACES: usize = 1 << 14;

/// What a question is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer.
    Answer,
    /// No more than the advice to come by TCP, which no forger can.
    Truncate,
    /// Nothing.
    Drop,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    second: u64,
    questions: u32,
}

/// The limit of UDP answers a second for each client: an IPv4 address or an IPv6 /64.
#[derive(Debug)]
pub struct Limit {
    /// Answers a second; 0 is no limit.
    rate: u32,
    exempt: Vec<IpNet>,
    /// Keyed by chance: nobody can choose whose place they share.
    hasher: RandomState,
    places: Mutex<Box<[Place]>>,
}

impl Limit {
    /// So many answers a second, 0 for as many as there are questions. Clients in `exempt` have no limit.
    pub fn new(rate: u32, exempt: Vec<IpNet>) -> Self {
        let places = if rate == 0 { 0 } else { PLACES };
        Self { rate, exempt, hasher: RandomState::new(), places: Mutex::new(vec![Place::default(); places].into()) }
    }

    /// Counts a question of `client`; `second` is any clock that only goes forward.
    pub fn count(&self, client: IpAddr, second: u64) -> Verdict {
        let client = client.to_canonical();
        if self.rate == 0 || self.exempt.iter().any(|net| net.contains(&client)) {
            return Verdict::Answer;
        }
        let client = match client {
            IpAddr::V4(_) => client,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(self.hasher.hash_one(client) % PLACES as u64).unwrap_or(0);
        let Some(place) = places.get_mut(at) else { return Verdict::Answer };
        if place.second != second {
            *place = Place { second, questions: 0 };
        }
        place.questions = place.questions.saturating_add(1);
        match place.questions.checked_sub(self.rate) {
            None | Some(0) => Verdict::Answer,
            Some(over) if over % 2 == 1 => Verdict::Truncate,
            Some(_) => Verdict::Drop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(limit: &Limit, client: &str, second: u64) -> Verdict {
        limit.count(client.parse().expect("an address"), second)
    }

    #[test]
    fn over_the_limit_every_other_question_is_sent_to_tcp() {
        let limit = Limit::new(2, Vec::new());
        let verdicts: Vec<_> = (0..5).map(|_| count(&limit, "192.0.2.1", 7)).collect();
        assert_eq!(verdicts, [Verdict::Answer, Verdict::Answer, Verdict::Truncate, Verdict::Drop, Verdict::Truncate]);
        assert_eq!(count(&limit, "192.0.2.2", 7), Verdict::Answer, "another client");
        assert_eq!(count(&limit, "192.0.2.1", 8), Verdict::Answer, "another second");
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_mapped_address_the_ipv4_one() {
        let limit = Limit::new(1, Vec::new());
        assert_eq!(count(&limit, "2001:db8::1", 1), Verdict::Answer);
        assert_eq!(count(&limit, "2001:db8::2", 1), Verdict::Truncate);
        assert_eq!(count(&limit, "2001:db8:0:1::2", 1), Verdict::Answer);
        assert_eq!(count(&limit, "192.0.2.1", 1), Verdict::Answer);
        assert_eq!(count(&limit, "::ffff:192.0.2.1", 1), Verdict::Truncate);
    }

    #[test]
    fn exempt_clients_and_no_limit() {
        let limit = Limit::new(1, vec!["10.244.0.0/16".parse().expect("a range")]);
        let off = Limit::new(0, Vec::new());
        for _ in 0..10 {
            assert_eq!(count(&limit, "10.244.9.9", 1), Verdict::Answer);
            assert_eq!(count(&off, "192.0.2.1", 1), Verdict::Answer);
        }
    }
}
