//! One peer: its tunnel, the UDP socket that carries it, and the flows in it. Everything of a process runs on one thread;
//! each flow is a task that is woken by its socket or by the tunnel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outpost_net::FlowKey;
use outpost_net::flow::message::Code;
use outpost_net::flow::{Notice, Session, SessionConfig};
use outpost_net::time::Instant;
use outpost_net::tunnel::{Endpoint, StreamId};
use tokio::sync::{Notify, Semaphore};

use crate::flow;
use crate::ledger::{End, Ends, Ledger, Numbers};
use crate::wire::Wire;

/// The most bytes the kernel gives or takes at once.
pub const BATCH_BYTES: usize = 65_507;

/// What a flow's task and the rest of the process share.
pub struct Slot {
    /// Who talks to whom.
    pub key: FlowKey,
    /// The tunnel has something for the flow.
    pub wake: Signal,
    /// The peer has reset the stream, or the tunnel is gone.
    pub reset: Cell<Option<Code>>,
    /// What has gone through it.
    pub numbers: Cell<Numbers>,
    /// What it is doing.
    pub stage: Cell<&'static str>,
    /// Since when it is there.
    pub begun: std::time::Instant,
}

/// Wakes the one task that waits for it, or the next that does. Of this thread only, which makes it cheap.
#[derive(Default)]
pub struct Signal {
    given: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the task that waits, or lets the next wait end at once.
    pub fn give(&self) {
        self.given.set(true);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it was given since this was last ready.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.given.replace(false) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until it is given.
    pub async fn given(&self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }
}

/// How flows ended, and how many there were.
#[derive(Default)]
#[allow(missing_docs)] // named after what they count
pub struct Counters {
    pub total: Cell<u64>,
    pub ends: Ends,
    pub from_hosts: Cell<u64>,
    pub to_hosts: Cell<u64>,
}

/// Adds to a counter.
pub fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

/// A peer.
pub struct Hub {
    /// Its name in the configuration.
    pub name: String,
    /// Its X25519 public key.
    pub key: [u8; 32],
    /// Core: connect to servers from the client's address.
    pub from_client: bool,
    /// Tunnel and dictionaries.
    pub session: RefCell<Session>,
    /// The flows in it.
    pub slots: RefCell<HashMap<StreamId, Rc<Slot>>>,
    /// There is something to send, or another time to wake up at.
    pub dirty: Notify,
    sending: RefCell<Sending>,
    /// Of the flows with much to do, of all peers, one at a time has its turn.
    pub turns: Rc<Semaphore>,
    /// What its flows' sockets are read to.
    pub buffer: flow::Buffer,
    /// What became of flows.
    pub counters: Counters,
    /// Where ended flows are noted.
    pub ledger: Rc<Ledger>,
    /// The socket that carries the tunnel.
    pub wire: Rc<Wire>,
    started: std::time::Instant,
}

impl Hub {
    /// A peer whose tunnel is not up yet.
    pub fn new(
        name: &str,
        config: SessionConfig,
        from_client: bool,
        wire: Rc<Wire>,
        ledger: Rc<Ledger>,
        turns: Rc<Semaphore>,
    ) -> Rc<Hub> {
        Rc::new(Hub {
            name: name.to_owned(),
            key: config.tunnel.peer_public_key,
            from_client,
            ledger,
            wire,
            session: RefCell::new(Session::new(config, Instant::ZERO)),
            slots: RefCell::default(),
            dirty: Notify::new(),
            sending: RefCell::default(),
            turns,
            buffer: flow::Buffer::default(),
            counters: Counters::default(),
            started: std::time::Instant::now(),
        })
    }

    /// The engine's time.
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.started.elapsed()
    }

    /// What the kernel may hold of the bytes of the next flow's host; `None`: it decides, for it does not allow as much.
    pub fn room(&self) -> Option<usize> {
        let room = if self.slots.borrow().len() <= flow::FEW {
            flow::ROOM
        } else {
            flow::ROOM_OF_MANY
        };
        self.wire.allows(flow::ROOM).then_some(room)
    }

    /// Makes a flow known.
    pub fn enter(&self, stream: StreamId, key: FlowKey) -> Rc<Slot> {
        let slot = Rc::new(Slot {
            key,
            wake: Signal::default(),
            reset: Cell::new(None),
            numbers: Cell::default(),
            stage: Cell::new("opening"),
            begun: std::time::Instant::now(),
        });
        add(&self.counters.total, 1);
        self.slots.borrow_mut().insert(stream, slot.clone());
        slot
    }

    /// Forgets a flow that is over.
    pub fn leave(&self, stream: StreamId, slot: &Rc<Slot>, end: End) {
        let mut slots = self.slots.borrow_mut();
        // The name may be another flow's by now.
        if slots.get(&stream).is_some_and(|it| Rc::ptr_eq(it, slot)) {
            slots.remove(&stream);
        }
        self.counters.ends.count(end);
        self.ledger
            .end(&self.name, slot.key, slot.numbers.get(), end, slot.begun);
        self.dirty.notify_one();
    }

    /// Acts on what came, and sends, for as long as it is polled. [`Wire::listen`] receives.
    ///
    /// # Errors
    /// The socket's, when it is of no use any more.
    pub async fn carry(self: &Rc<Hub>) -> io::Result<()> {
        loop {
            let blocked = !self.step();
            let now = self.now();
            let wait = match self.session.borrow().next_wakeup(now) {
                Some(at) => at.since(now),
                None => Duration::from_secs(60),
            };
            tokio::select! {
                ready = self.wire.writable(), if blocked => ready?,
                () = self.dirty.notified() => {}
                () = tokio::time::sleep(wait), if !blocked => {}
            }
        }
    }

    /// Between the turns of busy flows: takes in what has come, and sends. Otherwise the line would wait while fifty flows have
    /// theirs, and look slow.
    pub fn interleave(self: &Rc<Hub>) {
        // What is wrong with the socket is found where it is listened to.
        let _ = self.wire.receive_now();
        self.step();
        self.dirty.notify_one();
    }

    /// Acts on what came, and sends. `false`: the socket takes no more at the moment.
    fn step(self: &Rc<Hub>) -> bool {
        self.handle_notices();
        let all = self.transmit();
        // Sending may have told something, too.
        self.handle_notices();
        all
    }

    /// Sends all that may go now. `false`: the socket takes no more at the moment.
    fn transmit(&self) -> bool {
        let out = &mut *self.sending.borrow_mut();
        let most = self.wire.max_batch();
        loop {
            if !out.is_full(most) {
                out.collect(&mut self.session.borrow_mut(), self.now(), most);
            }
            let Some(to) = out.to else { return true };
            let size = (out.count > 1).then_some(out.size);
            if !self.wire.send(to, &out.batch, size) {
                return false;
            }
            out.sent();
        }
    }

    fn handle_notices(self: &Rc<Hub>) {
        loop {
            let notice = self.session.borrow_mut().notice(self.now());
            match notice {
                None => return,
                Some(Notice::Up) => {
                    let peer = self.session.borrow().peer();
                    log::info!(
                        "{}: the tunnel is up, peer at {}",
                        self.name,
                        peer.map_or_else(String::new, |at| at.to_string())
                    );
                    self.end_all();
                }
                Some(Notice::Down(reason)) => {
                    log::warn!("{}: the tunnel is down: {reason}", self.name);
                    self.end_all();
                }
                Some(Notice::Request(stream, key)) => {
                    let slot = self.enter(stream, key);
                    tokio::task::spawn_local(flow::serve(self.clone(), stream, slot));
                }
                Some(Notice::Wake(stream)) => {
                    if let Some(slot) = self.slots.borrow().get(&stream) {
                        slot.wake.give();
                    }
                }
                Some(Notice::Reset(stream, code)) => {
                    if let Some(slot) = self.slots.borrow().get(&stream) {
                        slot.reset.set(Some(code));
                        slot.wake.give();
                    }
                }
                Some(Notice::WrongKey(wrong)) => log::warn!("{}: {wrong}", self.name),
            }
        }
    }

    /// The tunnel is lost: every flow is reset.
    fn end_all(&self) {
        for (_, slot) in self.slots.borrow_mut().drain() {
            slot.reset.set(Some(flow::TUNNEL_DOWN));
            slot.wake.give();
        }
    }
}

/// Datagrams of one size for one place, and perhaps one that did not fit with them.
#[derive(Default)]
struct Sending {
    batch: Vec<u8>,
    to: Option<Endpoint>,
    size: usize,
    count: usize,
    /// The last one was shorter: nothing may follow it.
    closed: bool,
    next: Vec<u8>,
    next_to: Option<Endpoint>,
}

impl Sending {
    fn is_full(&self, most: usize) -> bool {
        self.closed || self.count >= most || self.next_to.is_some()
    }

    fn collect(&mut self, session: &mut Session, now: Instant, most: usize) {
        while !self.is_full(most) {
            let Some(to) = session.poll_transmit(now, &mut self.next) else {
                return;
            };
            self.next_to = Some(to);
            self.take_next();
        }
    }

    /// Appends the waiting datagram, if it goes with the others.
    fn take_next(&mut self) {
        let Some(to) = self.next_to else { return };
        let len = self.next.len();
        let goes = match self.to {
            None => true,
            Some(place) => place == to && len <= self.size && self.batch.len() + len <= BATCH_BYTES,
        };
        if goes {
            if self.to.is_none() {
                self.size = len;
            }
            self.to = Some(to);
            self.closed = len < self.size;
            self.batch.extend_from_slice(&self.next);
            self.count += 1;
            self.next_to = None;
        }
    }

    fn sent(&mut self) {
        self.batch.clear();
        self.to = None;
        self.count = 0;
        self.closed = false;
        self.take_next();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Poll, Wake};

    use super::Signal;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_signal_wakes_who_waits_and_is_kept_for_who_does_not_yet() {
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = count.clone().into();
        let mut context = Context::from_waker(&waker);
        let signal = Rc::new(Signal::default());
        signal.give();
        signal.give();
        assert_eq!(signal.poll(&mut context), Poll::Ready(()), "kept, once");
        let mut given = pin!(signal.given());
        assert!(given.as_mut().poll(&mut context).is_pending());
        assert!(given.as_mut().poll(&mut context).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        signal.give();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "woken once");
        assert!(given.as_mut().poll(&mut context).is_ready());
    }
}
