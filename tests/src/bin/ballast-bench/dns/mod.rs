//! `ballast dns` beside `CoreDNS`: the same objects from the same API server, the same questions from the same client, each
//! server on the same core, one after the other in every round, so that a slow moment of the machine falls on all alike.
//!
//! Before anything is measured both must give every question the same code and number of records.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts and times of minutes, shown with few digits"
)]

mod load;
mod objects;
mod report;
mod servers;
mod wire;

use std::{
    net::{TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_tests::api_server::ApiServer;

use self::{
    load::Pace,
    objects::{CHANGING, Size},
    report::{Figures, Followed, median, print},
    servers::{Kind, Server},
    wire::{A, Question},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Dns {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: u32,
    /// Endpoints of all Services together
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    endpoints: u32,
    /// Rounds; medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of load for each server in a round, twice
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Questions under way at a time, for the most answers a second
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=4096))]
    window: u32,
    /// Different questions
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    questions: u32,
    /// Starts of each server
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    starts: u32,
    /// Changes of readiness
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Without `CoreDNS`
    #[arg(long)]
    no_peer: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Share of what the slowest server answers at most that all are asked at equal load.
const EQUAL: f64 = 0.6;
/// Longest time a change may take.
const CHANGE: Duration = Duration::from_secs(30);

/// Measures and prints.
pub(crate) fn dns(options: &Dns) -> anyhow::Result<()> {
    ensure!(
        std::thread::available_parallelism()?.get() > 1,
        "it takes two cores: one for the servers, one for the client"
    );
    crate::programs::pin_to_one_cpu()?;
    let size = Size { services: options.services, endpoints: options.endpoints };
    let small = Size { services: 10, endpoints: 20 };
    let followed =
        [small, size].into_iter().map(|size| follow(size, options.changes)).collect::<anyhow::Result<Vec<_>>>()?;
    let api = serve(size)?;
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind == Kind::Ballast || !options.no_peer);
    let mut subjects = start(options, &api, size, &kinds.collect::<Vec<_>>())?;
    let questions = size.questions(options.questions);
    agree(&subjects, &questions)?;
    let (length, window) = (Duration::from_secs(options.seconds.into()), Pace::Window(options.window as usize));
    let mut rate = 0.0;
    for round in 0..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (server, figures) in &mut subjects {
            let most = load::run(server.at, &questions, window, length)?;
            eprintln!("  {}: {:.0} answers a second", server.kind.name(), most.rate);
            figures.most.push(most);
        }
        if round == 0 {
            // The first round only warms, and tells how much all can answer.
            let slowest = subjects.iter_mut().filter_map(|(_, figures)| Some(figures.most.pop()?.rate));
            rate = (slowest.fold(f64::INFINITY, f64::min) * EQUAL / 1000.0).round() * 1000.0;
            continue;
        }
        for (server, figures) in &mut subjects {
            figures.equal.push(load::run(server.at, &questions, Pace::Rate(rate), length)?);
        }
    }
    for (server, figures) in &mut subjects {
        figures.usage[1] = server.usage()?;
    }
    let all: Vec<Figures> = subjects.into_iter().map(|(_, figures)| figures).collect();
    print(size, rate, &all, &followed, options.json)
}

fn serve(size: Size) -> anyhow::Result<ApiServer> {
    eprintln!("making {} Services with {} endpoints", size.services, size.endpoints);
    let api = ApiServer::start(TcpListener::bind("127.0.0.1:0").context("no port")?)?;
    size.fill(&api);
    Ok(api)
}

/// Starts each server so many times, in turn; those of the last turn stay.
fn start(options: &Dns, api: &ApiServer, size: Size, kinds: &[Kind]) -> anyhow::Result<Vec<(Server, Figures)>> {
    let folder = tempfile::tempdir().context("no folder")?;
    let mut subjects: Vec<(Server, Figures)> = Vec::new();
    for turn in 0..options.starts {
        for (index, kind) in kinds.iter().enumerate() {
            // One at a time: they share a core.
            if let Some((server, _)) = subjects.get_mut(index) {
                server.process.kill()?;
            }
            let server = Server::start(*kind, api, folder.path(), &size.last())?;
            eprintln!("start {turn}: {} after {:.2} s", kind.name(), server.start.as_secs_f64());
            std::thread::sleep(Duration::from_secs(3));
            let (took, now) = (server.start, server.usage()?);
            if let Some((old, figures)) = subjects.get_mut(index) {
                *old = server;
                figures.starts.push(took);
                figures.usage[0] = now;
            } else {
                let (most, equal) = (Vec::new(), Vec::new());
                subjects.push((server, Figures { kind: *kind, starts: vec![took], usage: [now; 2], most, equal }));
            }
        }
    }
    Ok(subjects)
}

/// All servers say the same.
fn agree(subjects: &[(Server, Figures)], questions: &[Question]) -> anyhow::Result<()> {
    let mut told: Vec<Vec<_>> = Vec::new();
    for (server, _) in subjects {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server.at)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let all = questions.iter().zip((0..u16::MAX).cycle()).map(|(question, id)| {
            let answer = load::ask(&socket, question, id)?;
            answer.with_context(|| format!("{} has no answer for {}", server.kind.name(), question.shown()))
        });
        told.push(all.collect::<anyhow::Result<_>>()?);
    }
    let Some((first, others)) = told.split_first() else { return Ok(()) };
    for other in others {
        for ((one, other), question) in first.iter().zip(other).zip(questions) {
            ensure!(one == other, "{}: {one:?}, and of CoreDNS {other:?}", question.shown());
        }
    }
    let records = first.iter().map(|answer| f64::from(answer.records));
    eprintln!("all answer {} questions alike; median of {} records", questions.len(), median(records));
    Ok(())
}

/// From a change at the API server to the first answer that has it.
fn follow(size: Size, changes: u32) -> anyhow::Result<Followed> {
    let api = serve(size)?;
    let folder = tempfile::tempdir().context("no folder")?;
    let server = Server::start(Kind::Ballast, &api, folder.path(), &size.last())?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server.at)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let question = Question::new(CHANGING, A, false);
    let mut times = Vec::new();
    for number in 0..changes {
        let ready = number % 2 == 1;
        let begin = Instant::now();
        objects::change(&api, ready);
        for id in 0_u16.. {
            let answer = load::ask(&socket, &question, id)?;
            if answer.is_some_and(|answer| answer.records == 1 + u16::from(ready)) {
                break;
            }
            ensure!(begin.elapsed() < CHANGE, "a change is not followed: {answer:?}");
        }
        times.push(begin.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    times.sort_unstable();
    Ok(Followed { size, times })
}
