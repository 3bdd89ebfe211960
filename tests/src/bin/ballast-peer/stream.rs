//! Connections that carry much, or last.

use std::{
    io::{self, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_tests::client::{BulkReport, HoldReport};
use sha2::{Digest, Sha256};

use crate::{
    Target,
    call::{error_name, malformed},
};

impl Target {
    pub(crate) fn bulk(&self, bytes: u64) -> BulkReport {
        let start = Instant::now();
        let (answer, stream) = self.connect();
        let mut report = BulkReport {
            error: answer.error,
            backend: answer.backend,
            sent: 0,
            received: 0,
            sent_sha256: String::new(),
            received_sha256: String::new(),
            elapsed_ms: 0.0,
        };
        if let Some(stream) = stream
            && let Err(error) = transfer(stream, bytes, &mut report)
        {
            report.error = Some(error_name(&error));
        }
        report.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
        report
    }
}

/// Writes on one thread and reads on another: an echo of more than the buffers hold would deadlock on one.
fn transfer(mut stream: BufReader<TcpStream>, bytes: u64, report: &mut BulkReport) -> io::Result<()> {
    let mut writer = stream.get_ref().try_clone()?;
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(10)))?;
    writer.set_write_timeout(Some(Duration::from_secs(10)))?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || -> io::Result<(u64, String)> {
            let mut hash = Sha256::new();
            let (mut left, mut seed) = (bytes, 0x9e37_79b9_7f4a_7c15_u64);
            let mut chunk = vec![0_u8; 1 << 16];
            while left > 0 {
                for word in chunk.chunks_exact_mut(8) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word.copy_from_slice(&seed.to_le_bytes());
                }
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                let part = chunk.get(..count).unwrap_or_default();
                hash.update(part);
                writer.write_all(part)?;
                left -= part.len() as u64;
            }
            writer.shutdown(std::net::Shutdown::Write)?;
            Ok((bytes, hex(&hash.finalize())))
        });
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let reading = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    hash.update(buffer.get(..count).unwrap_or_default());
                    report.received += count as u64;
                }
                Err(error) => break Err(error),
            }
        };
        report.received_sha256 = hex(&hash.finalize());
        let sent = sending.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
        reading?;
        (report.sent, report.sent_sha256) = sent?;
        Ok(())
    })
}

pub(crate) fn hold(backend: Option<String>, mut stream: BufReader<TcpStream>, interval: Duration) -> HoldReport {
    static STOP: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| {
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        STOP.store(true, Ordering::Relaxed);
    });
    let mut report = HoldReport { error: None, backend, rounds: 0, max_gap_ms: 0.0 };
    loop {
        let last = STOP.load(Ordering::Relaxed);
        let start = Instant::now();
        if let Err(error) = echo_once(&mut stream, report.rounds) {
            report.error = Some(error_name(&error));
            break;
        }
        report.rounds += 1;
        report.max_gap_ms = report.max_gap_ms.max(start.elapsed().as_secs_f64() * 1e3);
        if last {
            break;
        }
        thread::sleep(interval);
    }
    report
}

fn echo_once(stream: &mut BufReader<TcpStream>, round: u64) -> io::Result<()> {
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.get_mut().write_all(&round.to_be_bytes())?;
    let mut echo = [0; 8];
    stream.read_exact(&mut echo)?;
    if echo == round.to_be_bytes() { Ok(()) } else { Err(malformed()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
