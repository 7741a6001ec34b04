//! The little of HTTP/1.1 (RFC 9112) that the management pages need: one request, one response, and the connection closes.

use alloc::format;
use alloc::vec::Vec;

/// The longest request head that is read, in bytes.
pub const MOST_REQUEST: usize = 4096;
/// The most header fields of a request.
const MOST_FIELDS: usize = 32;

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/metrics`
    Metrics,
    /// `/flows`
    Flows,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A page; `true`: without its body.
    Page(Page, bool),
    /// An error, told in a line; `true`: without its body.
    Refused(Refusal, bool),
}

/// Why a request has no page for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not HTTP/1.
    Malformed,
    /// There is no such page.
    NotFound,
    /// Pages can only be read.
    NotAllowed,
    /// Its head is too long.
    TooLong,
}

impl Refusal {
    /// Status code and reason phrase.
    fn status(self) -> &'static str {
        match self {
            Refusal::Malformed => "400 Bad Request",
            Refusal::NotFound => "404 Not Found",
            Refusal::NotAllowed => "405 Method Not Allowed",
            Refusal::TooLong => "431 Request Header Fields Too Large",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Refusal::Malformed => "This is no HTTP/1.1 request. Try: GET /metrics HTTP/1.1\n",
            Refusal::NotFound => "There is no such page. Try /metrics or /flows\n",
            Refusal::NotAllowed => "Pages here can only be read: use GET or HEAD\n",
            Refusal::TooLong => "The request is too long: 4096 bytes and 32 fields are read\n",
        }
    }
}

/// Reads a request head. `None`: it is not all there yet.
pub fn parse(bytes: &[u8]) -> Option<Request> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => request.method == Some("HEAD"),
        Ok(httparse::Status::Partial) if bytes.len() < MOST_REQUEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Request::Refused(Refusal::TooLong, false));
        }
        Err(_) => return Some(Request::Refused(Refusal::Malformed, false)),
    };
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let page = match path {
        "/metrics" => Page::Metrics,
        "/flows" => Page::Flows,
        _ => return Some(Request::Refused(Refusal::NotFound, head)),
    };
    Some(match request.method {
        Some("GET" | "HEAD") => Request::Page(page, head),
        _ => Request::Refused(Refusal::NotAllowed, head),
    })
}

/// The response with a page.
pub fn page(media_type: &str, body: &str, head_only: bool) -> Vec<u8> {
    response("200 OK", media_type, "", body, head_only)
}

/// The response without one.
pub fn refusal(refusal: Refusal, head_only: bool) -> Vec<u8> {
    let more = match refusal {
        Refusal::NotAllowed => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let media_type = "text/plain; charset=utf-8";
    response(
        refusal.status(),
        media_type,
        more,
        refusal.text(),
        head_only,
    )
}

fn response(status: &str, media_type: &str, more: &str, body: &str, head_only: bool) -> Vec<u8> {
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n{more}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !head_only {
        text.push_str(body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_are_found_and_everything_else_is_refused() {
        let request = |text: &str| parse(format!("{text}\r\nHost: box\r\n\r\n").as_bytes());
        let (page, refused) = (
            |page, head| Some(Request::Page(page, head)),
            |refusal, head| Some(Request::Refused(refusal, head)),
        );
        assert_eq!(request("GET /metrics HTTP/1.1"), page(Page::Metrics, false));
        assert_eq!(request("GET /flows?x=y HTTP/1.0"), page(Page::Flows, false));
        assert_eq!(request("HEAD /flows HTTP/1.1"), page(Page::Flows, true));
        assert_eq!(request("GET / HTTP/1.1"), refused(Refusal::NotFound, false));
        assert_eq!(
            request("HEAD /metrics/ HTTP/1.1"),
            refused(Refusal::NotFound, true)
        );
        assert_eq!(
            request("POST /metrics HTTP/1.1"),
            refused(Refusal::NotAllowed, false)
        );
        for nonsense in [
            "GET /metrics HTTP/2.0",
            "\u{1}\u{2}",
            "GET",
            " GET / HTTP/1.1",
        ] {
            let result = request(nonsense);
            assert_eq!(result, refused(Refusal::Malformed, false), "{nonsense:?}");
        }
    }

    #[test]
    fn a_request_may_come_in_pieces_but_not_without_end() {
        let whole = b"GET /metrics HTTP/1.1\r\nHost: box\r\n\r\n";
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        let mut long = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        long.resize(MOST_REQUEST, b'x');
        assert_eq!(
            parse(&long),
            Some(Request::Refused(Refusal::TooLong, false))
        );
        let mut many = b"GET /metrics HTTP/1.1\r\n".to_vec();
        for _ in 0..=MOST_FIELDS {
            many.extend_from_slice(b"X: y\r\n");
        }
        many.extend_from_slice(b"\r\n");
        assert_eq!(
            parse(&many),
            Some(Request::Refused(Refusal::TooLong, false))
        );
    }

    #[test]
    fn head_says_the_length_of_what_it_leaves_out() {
        let whole = page("text/plain", "body", false);
        let head = page("text/plain", "body", true);
        assert!(whole.ends_with(b"\r\n\r\nbody"));
        assert_eq!(whole[..whole.len() - 4], head[..]);
        assert!(head.windows(19).any(|at| at == b"Content-Length: 4\r\n"));
    }

    proptest! {
        #[test]
        fn no_request_panics(bytes in prop::collection::vec(any::<u8>(), 0..MOST_REQUEST + 1)) {
            let _ = parse(&bytes);
        }
    }
}
