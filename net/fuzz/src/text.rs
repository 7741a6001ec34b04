//! Targets for what programs on the LAN say: requests to the management pages, and to the SOCKS5 server of `outpost-peer`.

use outpost_net::management_fuzzing::{MOST_REQUEST, request};
use outpost_peer::socks_parsed;

use crate::Target;

/// Request heads. What is decided does not change with what comes later, and in the end something is.
pub const HTTP: Target = Target {
    name: "http",
    about: "request heads to the management pages: decided at the latest after 4,096 bytes, the same however they arrive",
    run: |input| {
        // More is never read.
        let input = &input[..input.len().min(MOST_REQUEST)];
        let whole = request(input);
        assert!(
            whole.is_some() || input.len() < MOST_REQUEST,
            "{} bytes and no decision",
            input.len()
        );
        let decided = (0..=input.len()).find_map(|cut| request(&input[..cut]));
        assert_eq!(decided, whole);
        if let Some(page) = whole.filter(|it| it.starts_with("Page(")) {
            let name: &[u8] = if page.contains("Metrics") {
                b"/metrics"
            } else {
                b"/flows"
            };
            let method: &[u8] = if page.contains("true") {
                b"HEAD"
            } else {
                b"GET"
            };
            for part in [name, method] {
                assert!(input.windows(part.len()).any(|it| it == part), "{page}");
            }
        }
    },
    honest: || {
        let many = "X: y\r\n".repeat(31);
        vec![
            (
                "metrics",
                b"GET /metrics HTTP/1.1\r\nHost: box\r\n\r\n".to_vec(),
            ),
            (
                "flows",
                b"HEAD /flows?all=1 HTTP/1.0\r\nAccept: */*\r\n\r\n".to_vec(),
            ),
            (
                "post",
                b"POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx".to_vec(),
            ),
            (
                "endless",
                format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(4200)).into_bytes(),
            ),
            (
                "fields",
                format!("GET / HTTP/1.1\r\n{many}\r\n").into_bytes(),
            ),
        ]
    },
    cases: 3000,
    memory: 1 << 20,
};

/// SOCKS5 greetings and requests. A message is whole or not there; what follows it changes nothing.
pub const SOCKS: Target = Target {
    name: "socks",
    about: "SOCKS5 greetings and requests: the same decision however the bytes are cut, within 262 bytes",
    run: |input| {
        for at in 0..2 {
            let whole = socks_parsed(input)[at].clone();
            assert!(
                whole.is_some() || input.len() < 4 + 1 + 255 + 2,
                "no decision"
            );
            let Some((shown, length)) = whole else {
                continue;
            };
            assert!(length <= input.len());
            if length > 0 && at == 1 && input[3] == 3 {
                let name = String::from_utf8_lossy(&input[5..][..usize::from(input[4])]);
                assert!(shown.starts_with(&format!("Name({name:?}, ")), "{shown}");
            }
            for cut in 0..input.len().min(300) {
                let part = socks_parsed(&input[..cut])[at].clone();
                assert!(
                    part.is_none() && cut < length.max(input.len())
                        || part == Some((shown.clone(), length)),
                    "{cut} bytes are {part:?}, all are {shown}"
                );
                assert!(length == 0 || part.is_none() || cut >= length);
            }
        }
    },
    honest: || {
        let mut name = vec![5, 1, 0, 3, 255];
        name.extend([b'n'; 255]);
        name.extend([1, 187]);
        vec![
            ("greeting", vec![5, 2, 2, 0]),
            ("no_method", vec![5, 1, 2]),
            ("address", vec![5, 1, 0, 1, 10, 77, 2, 10, 0, 80]),
            (
                "name",
                [&[5, 1, 0, 3, 7][..], b"a.b.tld", &[1, 187]].concat(),
            ),
            ("long_name", name),
            ("ipv6", [&[5, 1, 0, 4][..], &[7; 16], &[0, 80]].concat()),
            ("bind", vec![5, 2, 0, 1, 10, 77, 2, 10, 0, 80]),
        ]
    },
    cases: 10_000,
    memory: 1 << 20,
};
