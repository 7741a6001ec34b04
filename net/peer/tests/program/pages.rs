//! `/metrics` and `/flows`.

use super::*;
use std::collections::{HashMap, HashSet};

/// Checks a page against the text format 0.0.4, line by line.
fn check_exposition(page: &str) -> usize {
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("200 OK") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    let is_name = |name: &str| {
        let mut letters = name.bytes();
        let first = letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        first && letters.all(|c| c.is_ascii_alphanumeric() || c == b'_')
    };
    let mut helped = HashSet::new();
    let mut kinds = HashMap::new();
    let mut samples = HashSet::new();
    let mut family = String::new();
    assert!(body.ends_with('\n'));
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !text.is_empty(), "{line}");
            assert!(helped.insert(name.to_owned()), "twice: {line}");
            family = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family, "{line}");
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(
                kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            assert_eq!(name, family, "{line}");
            assert!(kinds.contains_key(name), "{line}");
            let labels = labels.strip_suffix('}').unwrap();
            for label in labels.split(',').filter(|it| !it.is_empty()) {
                let (label, text) = label.split_once('=').unwrap();
                assert!(is_name(label), "{line}");
                assert!(
                    text.len() >= 2 && text.starts_with('"') && text.ends_with('"'),
                    "{line}"
                );
            }
            assert!(value.parse::<u64>().is_ok(), "{line}");
            assert!(samples.insert(sample.to_owned()), "twice: {line}");
        }
    }
    samples.len()
}

#[test]
fn metrics_are_prometheus_text_and_flows_say_what_they_did() {
    let pair = Pair::new(echo(), "");
    let bytes = noise(1, 200_000);
    exchange(pair.proxy, &bytes, 50_000);
    exchange(pair.proxy, &bytes, 50_000);
    for port in [pair.management, pair.core_management] {
        let samples = check_exposition(&get(port, "/metrics"));
        assert!(samples > 60, "{samples}");
    }
    assert!(get(pair.management, "/nothing").starts_with("HTTP/1.1 404"));
    assert_eq!(
        metric(
            pair.management,
            "outpost_connections_total{reason=\"optimised\"}"
        ),
        2
    );
    let both = |direction: &str| {
        metric(
            pair.management,
            &format!("outpost_host_bytes_total{{peer=\"head\",direction=\"{direction}\"}}"),
        )
    };
    assert_eq!((both("from_hosts"), both("to_hosts")), (400_000, 400_000));

    // A third one stays open.
    let mut open = connect(pair.proxy);
    open.write_all(&bytes).unwrap();
    let page = until("the open flow", || {
        let page = flows_page(pair.management);
        let flow = page["flows"].get(0)?.clone();
        (flow["from_host_bytes"] == 200_000 && flow["copied_bytes"].as_u64()? > 150_000)
            .then_some(page)
    });
    let flow = &page["flows"][0];
    assert_eq!(flow["peer"], "head");
    assert_eq!(flow["client"], open.local_addr().unwrap().to_string());
    assert_eq!(
        (&flow["stage"], &flow["reason"]),
        (&"open".into(), &"optimised".into())
    );
    assert!(
        flow["age_seconds"].is_u64() && flow["refetches"] == 0,
        "{flow}"
    );
    assert!(flow["ratio"].as_f64().unwrap() > 10.0, "{flow}");
    let ended = page["ended"].as_array().unwrap();
    assert_eq!(ended.len(), 2);
    // The latest first: it was a repetition of the other, of which the last 64 KiB may not have been confirmed yet.
    let encoded = |index: usize| ended[index]["encoded_bytes"].as_u64().unwrap();
    assert!(encoded(0) * 2 < encoded(1), "{page}");
    for flow in ended {
        assert_eq!(flow["end"], "finished");
        assert_eq!(
            (&flow["from_host_bytes"], &flow["to_host_bytes"]),
            (&200_000.into(), &200_000.into())
        );
    }
}

#[test]
fn only_the_last_hundred_ended_flows_are_kept() {
    let pair = Pair::new(echo(), "");
    for round in 0..105u8 {
        exchange(pair.proxy, &[round; 3], 3);
    }
    until("all flows to end", || {
        (flow_ends(pair.management, "head", "finished") == 105).then_some(())
    });
    let page = flows_page(pair.management);
    assert_eq!(page["ended"].as_array().unwrap().len(), 100);
}
