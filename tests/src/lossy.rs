//! A hop as the internet has them: it loses, repeats and reorders packets. The kernels at hand have no netem, so the
//! router's packets take a turn through a TUN device and this program.
//!
//! ```text
//! client, node1, ... --> router: rule "iif that device: table 200" --> hop0 --> Mischief --> hop0 --> main table --> out
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, anyhow};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use crate::{World, tun::Tun};

const DEVICE: &str = "hop0";
/// After so long without a packet those held back are passed on: the last one of a burst has none to wait for.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 3_000_000 };

/// What a hop did to the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// All that came.
    pub packets: u64,
    /// Lost.
    pub lost: u64,
    /// Passed on twice.
    pub repeated: u64,
    /// Passed on after some that came later.
    pub late: u64,
}

/// All that the router forwards passes it, until it is dropped.
#[derive(Debug)]
pub struct LossyHop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Damage>>>,
}

impl LossyHop {
    /// Starts it; the same seed treats the same packets alike.
    pub fn start(world: &World, seed: u64) -> anyhow::Result<Self> {
        let router = world.router();
        let tun = router.run(|| Tun::open(DEVICE))?.context("cannot make a TUN device: is /dev/net/tun there?")?;
        // What comes back out of it has a source that lives elsewhere.
        router.sysctls(&[("ipv4/conf/all/rp_filter", "0"), (&format!("ipv4/conf/{DEVICE}/rp_filter"), "0")])?;
        router.ip(&format!("link set {DEVICE} up\nroute add default dev {DEVICE} table 200\n"))?;
        router.ip_output(&["-6", "route", "add", "default", "dev", DEVICE, "table", "200"])?;
        let nodes = world.nodes().iter().map(crate::Node::router_interface);
        for device in nodes.chain(["client".to_owned()]) {
            for family in ["-4", "-6"] {
                router.ip_output(&[family, "rule", "add", "iif", &device, "lookup", "200"])?;
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Some(thread::spawn(move || pass_on(tun, Mischief::new(seed), &stopped)));
        Ok(Self { stop, thread })
    }

    /// Ends it; what it did. Nothing passes the router any more.
    pub fn stop(mut self) -> anyhow::Result<Damage> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the hop was stopped before")?;
        thread.join().map_err(|_| anyhow!("the hop panicked"))?
    }
}

impl Drop for LossyHop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn pass_on(mut tun: Tun, mut mischief: Mischief, stopped: &AtomicBool) -> anyhow::Result<Damage> {
    let mut buffer = vec![0; 1 << 16];
    while !stopped.load(Ordering::Relaxed) {
        let mut waited = [PollFd::new(&tun, PollFlags::IN)];
        let packets = match rustix::event::poll(&mut waited, Some(&PATIENCE)) {
            Ok(0) => mischief.release(),
            Ok(_) => {
                let length = tun.read(&mut buffer).context("cannot read from the TUN device")?;
                mischief.pass(buffer.get(..length).unwrap_or_default())
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for the TUN device"),
        };
        for packet in packets {
            tun.write(&packet).context("cannot write to the TUN device")?;
        }
    }
    Ok(mischief.damage)
}

/// Decides what becomes of each packet. Of a hundred one is lost, one repeated, and two come late.
#[derive(Debug)]
struct Mischief {
    random: u64,
    /// Each with the number of packets that overtake it yet.
    held: Vec<(u64, Vec<u8>)>,
    damage: Damage,
}

impl Mischief {
    fn new(seed: u64) -> Self {
        Self { random: seed, held: Vec::new(), damage: Damage::default() }
    }

    /// What to pass on when this packet came.
    fn pass(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        self.damage.packets += 1;
        let random = self.next();
        let mut out = Vec::new();
        let mut held = (random % 100 == 2 || random % 100 == 3).then(|| (1 + random / 100 % 8, packet.to_vec()));
        match random % 100 {
            0 => self.damage.lost += 1,
            1 => {
                self.damage.repeated += 1;
                out.extend([packet.to_vec(), packet.to_vec()]);
            }
            2 | 3 => self.damage.late += 1,
            _ => out.push(packet.to_vec()),
        }
        for (overtaking, _) in &mut self.held {
            *overtaking -= 1;
        }
        out.extend(self.held.extract_if(.., |(overtaking, _)| *overtaking == 0).map(|(_, packet)| packet));
        self.held.extend(held.take());
        out
    }

    /// Everything that was held back.
    fn release(&mut self) -> Vec<Vec<u8>> {
        self.held.drain(..).map(|(_, packet)| packet).collect()
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(seed: u64) -> (Vec<u32>, Damage) {
        let mut mischief = Mischief::new(seed);
        let mut out: Vec<_> = (0..10_000_u32).flat_map(|number| mischief.pass(&number.to_ne_bytes())).collect();
        out.extend(mischief.release());
        let numbers = out.iter().map(|packet| u32::from_ne_bytes(*packet.first_chunk().expect("four bytes")));
        (numbers.collect(), mischief.damage)
    }

    #[test]
    fn packets_are_lost_repeated_and_late_as_often_as_promised_and_alike_for_a_seed() {
        let (numbers, damage) = passed(7);
        for (what, of, per_cent) in
            [("lost", damage.lost, 1), ("repeated", damage.repeated, 1), ("late", damage.late, 2)]
        {
            assert!(of.abs_diff(100 * per_cent) < 50, "{what}: {damage:?}");
        }
        assert_eq!(numbers.len() as u64, damage.packets - damage.lost + damage.repeated);
        let overtaken = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
        assert!(overtaken > damage.late / 2, "{overtaken} of {damage:?}");
        assert_eq!(passed(7), (numbers, damage));
        assert_ne!(passed(8).0, passed(7).0);
    }
}
