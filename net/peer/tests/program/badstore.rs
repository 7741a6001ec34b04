//! Stores that are cut short, of a newer format, or on a disk that is full: each is said, and every byte arrives.

use super::*;

/// A branch whose store is at `path`, and a core without one.
struct Stored {
    _core: Running,
    branch: Running,
    proxy: SocketAddr,
    management: u16,
}

fn metric_of(management: u16, name: &str) -> u64 {
    metric(
        management,
        &format!("outpost_store_{name}{{peer=\"head\"}}"),
    )
}

impl Stored {
    fn new(path: &str, start: impl FnOnce(&str) -> Running) -> Stored {
        let ((core_private, core_public), (private, public)) = (keys(), keys());
        let (udp, port, management) = (free_port(), free_port(), free_port());
        let core = core_text(&core_private, udp, free_port(), &[("branch", &public)]);
        let store = format!("[store]\npath = {path:?}\nsize = \"48M\"\nmemory = \"8M\"\n");
        let text = branch_text(&private, management, &core_public, udp)
            .replace("[store]\nmemory = \"16M\"\n", &store)
            + &proxy_text(port, echo());
        assert!(text.contains(&store));
        let stored = Stored {
            _core: Running::start(&core),
            branch: start(&text),
            proxy: SocketAddr::from(([127, 0, 0, 1], port)),
            management,
        };
        tunnel_is_up(management, "head");
        stored
    }
}

/// A file that is removed in the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let name = format!("outpost-{name}-{}-{}", std::process::id(), free_port());
        Temporary(std::env::temp_dir().join(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_store_of_a_newer_format_is_left_as_it_is_and_the_dictionary_is_in_memory() {
    let file = Temporary::new("newer");
    // Larger than the configuration says, so that it would have been cut.
    let mut bytes = noise(5, 60 << 20);
    for at in [0, 4096] {
        bytes[at..at + 8].copy_from_slice(b"OUTPOSTD");
        bytes[at + 8..at + 12].copy_from_slice(&2u32.to_le_bytes());
    }
    std::fs::write(&file.0, &bytes).unwrap();
    let stored = Stored::new(file.0.to_str().unwrap(), Running::start);
    stored
        .branch
        .says("the store has format 2 and this version knows 1; it is left untouched");
    stored.branch.says("the dictionary is in memory only");
    for _ in 0..2 {
        exchange(stored.proxy, &noise(1, 1 << 20), 50_000);
    }
    assert_eq!(metric_of(stored.management, "memory_only"), 1);
    assert!(std::fs::read(&file.0).unwrap() == bytes, "it was touched");
}

#[test]
fn a_store_cut_short_has_what_is_left_and_warms_up_again() {
    let file = Temporary::new("short");
    let mut stored = Stored::new(file.0.to_str().unwrap(), Running::start);
    let bytes = noise(2, 4 << 20);
    exchange(stored.proxy, &bytes, 200_000);
    stored.branch.signal("-TERM");
    stored.branch.ends();
    let whole = std::fs::OpenOptions::new()
        .write(true)
        .open(&file.0)
        .unwrap();
    whole.set_len((5 << 20) + 1234).unwrap();
    drop(whole);
    stored.branch.restart();
    tunnel_is_up(stored.management, "head");
    let warm = metric_of(stored.management, "warm_bytes");
    assert!((1 << 20..8 << 20).contains(&warm), "{warm} bytes are warm");
    exchange(stored.proxy, &bytes, 200_000);
    let sent = "outpost_tunnel_sent_bytes_total{peer=\"head\"}";
    let before = metric(stored.management, sent);
    exchange(stored.proxy, &bytes, 200_000);
    let again = metric(stored.management, sent) - before;
    assert!(again < 200_000, "{again} bytes for what is known");
}

/// In a mount namespace of its own, on a file system of 6 MiB.
#[test]
fn a_full_disk_is_said_and_counted_and_stops_nothing() {
    let may = Command::new("unshare")
        .args(["-Urm", "sh", "-c", "mount -t tmpfs -o size=6m none /mnt"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no user namespaces here, or no unshare");
        return;
    }
    let stored = Stored::new("/mnt/store", |text| {
        let config = ConfigFile::new(text);
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs -o size=6m none /mnt && exec \"$0\" run --config \"$1\"";
        command
            .args(["-Urm", "sh", "-c", script, PROGRAM])
            .arg(&config.0);
        Running::spawn(command, config)
    });
    // More than there is room for, twice: what does not fit is dropped, and every byte arrives.
    let bytes = noise(3, 14 << 20);
    exchange(stored.proxy, &bytes, 200_000);
    stored
        .branch
        .says("the store cannot be written: the device is full");
    exchange(stored.proxy, &bytes, 200_000);
    until("more to be refused", || {
        exchange(stored.proxy, &noise(4, 3 << 20), 200_000);
        (metric_of(stored.management, "memory_only") == 1).then_some(())
    });
    stored
        .branch
        .says("from now on the dictionary is in memory only");
    assert!(metric_of(stored.management, "write_errors_total") > 0);
    assert!(metric_of(stored.management, "dropped_bytes_total") > 0);
    exchange(stored.proxy, &noise(6, 1 << 20), 200_000);
    assert!(stored.branch.lines_with("is down").is_empty());
}
