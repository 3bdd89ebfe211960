//! The client: one thread, several sockets, a bounded number of questions under way.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::wire::{Answer, Question};

/// Sockets: as many clients.
const SOCKETS: usize = 8;
/// A question without an answer for so long is lost.
const LOST: Duration = Duration::from_secs(1);

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// So many questions at a time.
    Window(usize),
    /// So many questions a second. Time counts from when a question was due: a server that stalls is not spared.
    Rate(f64),
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// Answers a second.
    pub(super) rate: f64,
    /// Questions without an answer.
    pub(super) lost: usize,
    /// Time of each answer, in microseconds; sorted.
    times: Vec<f32>,
}

impl Load {
    /// The time that this share of the answers did not take longer than, in microseconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let index = (share * self.times.len() as f64).ceil() as usize;
        self.times.get(index.saturating_sub(1)).copied().unwrap_or_default().into()
    }
}

/// A question under way.
#[derive(Clone, Copy)]
struct Sent {
    due: Instant,
}

/// One socket with what it waits for, by id.
struct Client {
    socket: UdpSocket,
    waiting: Vec<Option<Sent>>,
    free: Vec<u16>,
}

impl Client {
    fn new(at: SocketAddr, room: u16) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("no socket")?;
        socket.connect(at)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, waiting: vec![None; room.into()], free: (0..room).rev().collect() })
    }

    fn send(&mut self, question: &Question, due: Instant, buffer: &mut Vec<u8>) -> bool {
        let Some(id) = self.free.pop() else { return false };
        question.write(id, buffer);
        if self.socket.send(buffer).is_err() {
            self.free.push(id);
            return false;
        }
        if let Some(place) = self.waiting.get_mut(usize::from(id)) {
            *place = Some(Sent { due });
        }
        true
    }

    /// Takes what has come.
    fn receive(&mut self, times: &mut Vec<f32>) -> anyhow::Result<usize> {
        let (mut buffer, mut count) = ([0; 2048], 0);
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer =
                        Answer::read(buffer.get(..length).unwrap_or_default()).context("no answer came back")?;
                    let place = self.waiting.get_mut(usize::from(answer.id));
                    if let Some(sent) = place.and_then(Option::take) {
                        times.push(sent.due.elapsed().as_secs_f32() * 1e6);
                        self.free.push(answer.id);
                        count += 1;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error).context("the server is gone"),
            }
        }
    }

    fn give_up(&mut self) -> usize {
        let mut lost = 0;
        for (place, id) in self.waiting.iter_mut().zip(0..) {
            if place.is_some_and(|sent| sent.due.elapsed() > LOST) {
                *place = None;
                self.free.push(id);
                lost += 1;
            }
        }
        lost
    }
}

/// Asks these questions, over and over, for so long.
pub(super) fn run(at: SocketAddr, questions: &[Question], pace: Pace, length: Duration) -> anyhow::Result<Load> {
    let room = match pace {
        Pace::Window(count) => u16::try_from(count / SOCKETS)?.max(1),
        Pace::Rate(_) => 4096,
    };
    let mut clients = (0..SOCKETS).map(|_| Client::new(at, room)).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut times, mut lost, mut asked) = (Vec::with_capacity(1 << 21), 0, 0_usize);
    let mut buffer = Vec::new();
    let mut all = questions.iter().cycle();
    let begin = Instant::now();
    let mut looked = begin;
    while begin.elapsed() < length {
        for client in &mut clients {
            client.receive(&mut times)?;
            if let Pace::Window(_) = pace {
                while let Some(question) = all.next()
                    && client.send(question, Instant::now(), &mut buffer)
                {}
            }
        }
        if let Pace::Rate(rate) = pace {
            let due = (begin.elapsed().as_secs_f64() * rate) as usize;
            while asked < due {
                let since = Duration::from_secs_f64(asked as f64 / rate);
                let client = clients.get_mut(asked % SOCKETS).context("no client")?;
                let question = all.next().context("no questions")?;
                if !client.send(question, begin + since, &mut buffer) {
                    lost += 1;
                }
                asked += 1;
            }
        }
        if looked.elapsed() > LOST {
            lost += clients.iter_mut().map(Client::give_up).sum::<usize>();
            looked = Instant::now();
        }
    }
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    times.sort_unstable_by(f32::total_cmp);
    Ok(Load { rate, lost, times })
}

/// The answer to one question, asked again until there is one.
pub(super) fn ask(socket: &UdpSocket, question: &Question, id: u16) -> anyhow::Result<Option<Answer>> {
    let (mut buffer, mut answer) = (Vec::new(), [0; 2048]);
    question.write(id, &mut buffer);
    // Refused while nobody listens.
    if socket.send(&buffer).is_err() {
        return Ok(None);
    }
    loop {
        match socket.recv(&mut answer) {
            Ok(length) => {
                let read = Answer::read(answer.get(..length).unwrap_or_default()).context("no answer came back")?;
                if read.id == id {
                    return Ok(Some(read));
                }
            }
            Err(_) => return Ok(None),
        }
    }
}
