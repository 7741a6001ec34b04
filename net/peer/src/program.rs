//! The program as a whole: what a configuration makes of it, reloading, stopping.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outpost_config::Step::{self, Index, Key};
use outpost_config::{Peer, ProgramConfig, Proxy, Role, Socks, Transparent};
use outpost_net::flow::{SessionConfig, store_owner};
use outpost_net::tunnel::{Endpoint, TunnelConfig, public_key};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::flow;
use crate::hub::Hub;
use crate::ledger::Ledger;
use crate::metrics::{self, Shown};
use crate::transparent::{self, Routes};
use crate::wire::Wire;
use crate::{hub, socks, store};

/// How long flows may take to finish when the program is asked to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why the program, or a part of it, cannot start.
#[derive(Debug)]
pub struct StartError {
    place: Vec<Step<'static>>,
    message: String,
}

impl StartError {
    fn new(place: &[Step<'static>], message: impl Into<String>) -> StartError {
        StartError {
            place: place.to_vec(),
            message: message.into(),
        }
    }

    /// What in the configuration is at fault, for [`outpost_config::locate`]; empty: nothing in it.
    pub fn place(&self) -> &[Step<'static>] {
        &self.place
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

fn seed() -> Result<[u8; 32], StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| {
        StartError::new(&[], format!("the system gives no random numbers: {error}"))
    })?;
    Ok(seed)
}

/// A new key pair as two lines for `outpost.toml`.
///
/// # Errors
/// The system gives no random numbers.
pub fn keygen() -> Result<String, StartError> {
    let private = seed()?;
    let (private, public) = (
        STANDARD.encode(private),
        STANDARD.encode(public_key(&private)),
    );
    Ok(format!(
        "private_key = \"{private}\"\npublic_key = \"{public}\"\n"
    ))
}

/// Something that accepts clients.
#[derive(Clone, PartialEq, Eq)]
enum Listener {
    Proxy(Proxy),
    Socks(Socks),
    /// Depends on what all peers serve.
    Transparent(Transparent, Vec<Peer>),
}

impl Listener {
    /// All that `config` asks for, with their places in the file.
    fn all(config: &ProgramConfig) -> Vec<(Listener, Vec<Step<'static>>)> {
        let place = |key, index| vec![Key(key), Index(index), Key("listen")];
        let proxies = config.proxies.iter().enumerate();
        let socks = config.socks.iter().enumerate();
        let transparent = config.transparent.iter();
        proxies
            .map(|(index, it)| (Listener::Proxy(it.clone()), place("proxy", index)))
            .chain(socks.map(|(index, it)| (Listener::Socks(it.clone()), place("socks", index))))
            .chain(transparent.map(|it| {
                let listener = Listener::Transparent(it.clone(), config.peers.clone());
                (listener, vec![Key("transparent"), Key("listen")])
            }))
            .collect()
    }

    /// Whether it hands connections to a peer with this name.
    fn uses(&self, name: &str) -> bool {
        match self {
            Listener::Proxy(proxy) => proxy.peer == name,
            Listener::Socks(socks) => socks.peer == name,
            // Its list of peers is compared.
            Listener::Transparent(..) => false,
        }
    }
}

/// A peer and the tasks that are its alone.
struct Running {
    peer: Peer,
    hub: Rc<Hub>,
    tasks: Vec<JoinHandle<()>>,
}

/// The running program. Call everything inside one `tokio::task::LocalSet`.
pub struct Program {
    config: ProgramConfig,
    shown: Rc<Shown>,
    ledger: Rc<Ledger>,
    turns: Rc<Semaphore>,
    peers: Vec<Running>,
    listeners: Vec<(Listener, JoinHandle<()>)>,
}

impl Program {
    /// Starts what `config` says.
    ///
    /// # Errors
    /// An address cannot be listened at, or a key is used at both ends.
    pub async fn start(config: ProgramConfig) -> Result<Program, StartError> {
        check(&config)?;
        let ledger = Rc::new(Ledger::default());
        let mut program = Program {
            shown: Rc::new(Shown {
                hubs: RefCell::default(),
                ledger: ledger.clone(),
                wire: RefCell::default(),
            }),
            ledger,
            turns: Rc::new(Semaphore::new(1)),
            peers: Vec::new(),
            listeners: Vec::new(),
            config: config.clone(),
        };
        if config.role == Role::Core {
            let core = (config.private_key.0, seed()?);
            let (wire, _) = open_wire(config.listen, Some(core)).await?;
            *program.shown.wire.borrow_mut() = Some(wire);
        }
        // What clients use is there before the tunnels begin to talk.
        let management = match &config.management {
            Some(management) => Some(listen(
                management.listen,
                &[Key("management"), Key("listen")],
            )?),
            None => None,
        };
        for index in 0..config.peers.len() {
            program.add_peer(index).await?;
        }
        for (listener, place) in Listener::all(&config) {
            program.add_listener(listener, &place)?;
        }
        if let Some(listener) = management {
            tokio::task::spawn_local(metrics::serve(listener, program.shown.clone()));
        }
        Ok(program)
    }

    async fn add_peer(&mut self, index: usize) -> Result<(), StartError> {
        let Some(peer) = self.config.peers.get(index).cloned() else {
            return Ok(());
        };
        let mut tasks = Vec::new();
        let core = self.shown.wire.borrow().clone();
        let wire = match core {
            Some(wire) => wire,
            None => {
                let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
                let (wire, task) = open_wire(any, None).await?;
                tasks.push(task);
                wire
            }
        };
        let tunnel = TunnelConfig::new(self.config.private_key.0, peer.public_key.0);
        let (owner, peers) = (store_owner(&tunnel), self.config.peers.len());
        let place = store::place(&self.config.store, &peer.name, owner, peers)
            .await
            .map_err(|message| StartError::new(&[Key("store"), Key("path")], message))?;
        let config = SessionConfig {
            tunnel,
            endpoint: match self.config.role {
                Role::Core => None,
                Role::Branch => peer.endpoint.map(|at| Endpoint::new(*at.ip(), at.port())),
            },
            seed: seed()?,
            store: place.parts.clone(),
        };
        let from_client = self.config.from_client;
        let opening = std::time::Instant::now();
        let hub = Hub::new(
            &peer.name,
            config,
            from_client,
            wire,
            self.ledger.clone(),
            self.turns.clone(),
        );
        place.keep(&hub, opening.elapsed());
        hub.wire.add(hub.clone());
        let carrier = hub.clone();
        tasks.push(tokio::task::spawn_local(async move {
            if let Err(error) = carrier.carry().await {
                log::error!("{}: the tunnel's socket fails: {error}", carrier.name);
            }
        }));
        self.shown.hubs.borrow_mut().push(hub.clone());
        self.peers.push(Running { peer, hub, tasks });
        Ok(())
    }

    fn hub(&self, name: &str) -> Result<Rc<Hub>, StartError> {
        let named = |it: &&Running| it.peer.name == name;
        let running = self.peers.iter().find(named);
        running
            .map(|it| it.hub.clone())
            .ok_or_else(|| StartError::new(&[], format!("no peer {name}")))
    }

    fn add_listener(&mut self, what: Listener, place: &[Step<'static>]) -> Result<(), StartError> {
        let ledger = self.ledger.clone();
        let count = move |hub: &Hub| {
            let reason = match hub.session.borrow().is_up() {
                true => outpost_net::engine::Reason::Optimised,
                false => outpost_net::engine::Reason::TunnelDown,
            };
            ledger.reasons.borrow_mut().count(reason);
        };
        let task = match &what {
            Listener::Proxy(proxy) => {
                let (hub, to) = (self.hub(&proxy.peer)?, proxy.to);
                let served = hub.clone();
                let room = move || served.room();
                accept(listen(proxy.listen, place)?, room, move |tcp, client| {
                    count(&hub);
                    flow::forward(hub.clone(), tcp, client, to)
                })
            }
            Listener::Socks(socks) => {
                let hub = self.hub(&socks.peer)?;
                let served = hub.clone();
                let room = move || served.room();
                accept(listen(socks.listen, place)?, room, move |tcp, client| {
                    count(&hub);
                    socks::serve(hub.clone(), tcp, client)
                })
            }
            Listener::Transparent(transparent, _) => {
                let at = transparent.listen;
                let listener =
                    transparent::listen(at).map_err(|error| cannot_listen(at, place, &error))?;
                let with = |it: &Running| (it.peer.prefixes.clone(), it.hub.clone());
                let other = transparent.peer.as_deref().map(|name| self.hub(name));
                let routes = Rc::new(Routes {
                    listen: at,
                    peers: self.peers.iter().map(with).collect(),
                    other: other.transpose()?,
                    ledger: self.ledger.clone(),
                });
                let served = routes.clone();
                let room = move || served.room();
                accept(listener, room, move |tcp, client| {
                    transparent::serve(routes.clone(), tcp, client)
                })
            }
        };
        self.listeners.push((what, task));
        Ok(())
    }

    /// Goes over to another configuration. Peers and listeners that are in both go on, with their flows; the role, the key,
    /// `listen`, `from_client`, `[store]` and `[management]` are those of the start.
    ///
    /// # Errors
    /// Something new cannot start; the rest goes on.
    pub async fn reload(&mut self, config: ProgramConfig) -> Result<(), StartError> {
        let old = &self.config;
        let fixed = |config: &ProgramConfig| {
            let ProgramConfig {
                role,
                private_key,
                listen,
                from_client,
                store,
                management,
                ..
            } = config.clone();
            (role, private_key, listen, from_client, store, management)
        };
        if fixed(&config) != fixed(old) {
            return Err(StartError::new(
                &[],
                "role, private_key, listen, from_client, [store] and [management] change only by a restart; nothing was reloaded",
            ));
        }
        check(&config)?;
        let (keep, gone): (Vec<_>, Vec<_>) = self
            .peers
            .drain(..)
            .partition(|it| config.peers.contains(&it.peer));
        self.peers = keep;
        let wanted = Listener::all(&config);
        let stays = |it: &Listener| {
            wanted.iter().any(|(other, _)| other == it)
                && !gone.iter().any(|gone| it.uses(&gone.peer.name))
        };
        let (keep, over): (Vec<_>, Vec<_>) =
            self.listeners.drain(..).partition(|(it, _)| stays(it));
        self.listeners = keep;
        for (_, task) in over {
            end(task).await;
        }
        for running in gone {
            self.remove(running).await;
        }
        self.config = config;
        for index in 0..self.config.peers.len() {
            let peer = &self.config.peers[index];
            if !self.peers.iter().any(|it| it.peer == *peer) {
                self.add_peer(index).await?;
            }
        }
        for (listener, place) in wanted {
            if !self.listeners.iter().any(|(it, _)| *it == listener) {
                self.add_listener(listener, &place)?;
            }
        }
        Ok(())
    }

    async fn remove(&self, running: Running) {
        let hub = &running.hub;
        close(hub).await;
        hub.wire.remove(hub);
        self.shown
            .hubs
            .borrow_mut()
            .retain(|it| !Rc::ptr_eq(it, hub));
        for task in running.tasks {
            end(task).await;
        }
    }

    /// Stops in order: no new connections, a grace for those there are, then the tunnels.
    pub async fn stop(mut self) {
        for (_, task) in self.listeners.drain(..) {
            end(task).await;
        }
        let deadline = tokio::time::Instant::now() + GRACE;
        let open = |it: &Running| it.hub.slots.borrow().len();
        let busy = || self.peers.iter().map(open).sum::<usize>();
        while busy() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if busy() > 0 {
            let seconds = GRACE.as_secs();
            log::warn!(
                "{} flows are not over after {seconds} s and are reset",
                busy()
            );
        }
        for running in &self.peers {
            close(&running.hub).await;
        }
    }
}

/// What the parser of the configuration cannot check.
fn check(config: &ProgramConfig) -> Result<(), StartError> {
    let own = public_key(&config.private_key.0);
    for (index, peer) in config.peers.iter().enumerate() {
        if peer.public_key.0 == own {
            let message = format!(
                "peer `{}` has this end's own key; each end has a key pair of its own, from `outpost-peer keygen`",
                peer.name
            );
            return Err(StartError::new(
                &[Key("peer"), Index(index), Key("public_key")],
                message,
            ));
        }
    }
    if config.from_client {
        let may = TcpSocket::new_v4()
            .and_then(|socket| SockRef::from(&socket).set_ip_transparent_v4(true));
        if let Err(error) = may {
            let message = format!(
                "{error}: connecting from a client's address needs CAP_NET_ADMIN; give it, or remove from_client"
            );
            return Err(StartError::new(&[Key("from_client")], message));
        }
    }
    Ok(())
}

/// Drops a task, and waits until all that it holds is closed.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

async fn close(hub: &hub::Hub) {
    hub.session.borrow_mut().close(hub.now());
    hub.dirty.notify_one();
    // The farewell leaves, and flows are told.
    tokio::time::sleep(Duration::from_millis(50)).await;
    hub.session.borrow_mut().close_store();
}

/// A socket for tunnels, and the task that receives on it.
async fn open_wire(
    at: SocketAddrV4,
    core: Option<([u8; 32], [u8; 32])>,
) -> Result<(Rc<Wire>, JoinHandle<()>), StartError> {
    let failed = |error| {
        let message = format!("cannot listen at {at} (UDP): {error}; give another address or port");
        StartError::new(&[Key("listen")], message)
    };
    let socket = UdpSocket::bind(at).await.map_err(failed)?;
    let wire = Wire::new(socket, core).map_err(failed)?;
    let receiver = wire.clone();
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = receiver.listen().await {
            log::error!("the socket for tunnels fails: {error}");
        }
    });
    Ok((wire, task))
}

/// Hands each connection to `serve`, with the client's address, as a task of its own. `room`: what the kernel may hold of the next
/// client's bytes. A connection has it from the listener, so that its client is told at once: told after it has begun to send, it
/// sends little by little, and each of its pieces is asked for by a packet of ours.
fn accept<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    room: impl Fn() -> Option<usize> + 'static,
    serve: impl Fn(TcpStream, SocketAddrV4) -> F + 'static,
) -> JoinHandle<()> {
    tokio::task::spawn_local(async move {
        let mut given = None;
        loop {
            let room = room();
            if let Some(room) = room.filter(|_| room != given) {
                let _ = SockRef::from(&listener).set_recv_buffer_size(room);
                given = Some(room);
            }
            match listener.accept().await {
                Ok((tcp, SocketAddr::V4(client))) => {
                    tokio::task::spawn_local(serve(tcp, client));
                }
                // Nothing listens at an IPv6 address.
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

fn listen(at: SocketAddrV4, place: &[Step<'static>]) -> Result<TcpListener, StartError> {
    let listener = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        flow::without_delay(&socket);
        socket.bind(at.into())?;
        socket.listen(1024)
    };
    listener().map_err(|error| cannot_listen(at, place, &error))
}

fn cannot_listen(at: SocketAddrV4, place: &[Step<'static>], error: &io::Error) -> StartError {
    let message = format!("cannot listen at {at}: {error}; give another address or port");
    StartError::new(place, message)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::Ipv4Addr;

    use tokio::sync::mpsc;

    use super::*;

    /// So small that any system allows it.
    const ROOMS: [usize; 2] = [64 * 1024, 16 * 1024];

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_finds_the_room_that_there_is_when_it_comes() {
        let body = async {
            let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
            let listener = listen(at, &[]).unwrap();
            let at = listener.local_addr().unwrap();
            let room = Rc::new(Cell::new(Some(ROOMS[0])));
            let (sender, mut accepted) = mpsc::unbounded_channel();
            let asked = room.clone();
            let task = accept(
                listener,
                move || asked.get(),
                move |tcp, _| {
                    sender.send(tcp).unwrap();
                    std::future::ready(())
                },
            );
            // The listener's task has run when the first has been accepted; the kernel decides for nobody then.
            let mut found = Vec::new();
            for next in [Some(ROOMS[0]), Some(ROOMS[1]), None, None] {
                room.set(next);
                let client = TcpStream::connect(at).await.unwrap();
                let tcp = accepted.recv().await.unwrap();
                // Linux shows twice what was asked for.
                found.push(SockRef::from(&tcp).recv_buffer_size().unwrap() / 2);
                drop(client);
            }
            task.abort();
            // A change is seen when the next client is accepted, and holds for those after it.
            assert_eq!(found[1..], [ROOMS[0], ROOMS[1], ROOMS[1]]);
        };
        tokio::task::LocalSet::new().run_until(body).await;
    }
}
