//! As much of HTTP/1.1 as a scrape needs: `GET /metrics`, one request per connection.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Limits of a client that is slow or sends rubbish: the next one waits for it. The time is for all of its request.
const MAX_HEAD: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// After a failure to accept, for example for want of a file descriptor.
const PAUSE: Duration = Duration::from_millis(100);

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Waits for the next client and answers it.
pub(super) fn next(listener: &TcpListener, metrics: impl Fn() -> String) {
    match listener.accept() {
        Ok((client, _)) => {
            if let Err(error) = answer(client, Instant::now() + PATIENCE, metrics) {
                tracing::debug!("a client of the metrics: {error}");
            }
        }
        Err(error) => {
            tracing::debug!("the metrics' listener: {error}");
            thread::sleep(PAUSE);
        }
    }
}

fn answer(mut client: TcpStream, deadline: Instant, metrics: impl Fn() -> String) -> io::Result<()> {
    let head = head(&mut client, deadline)?;
    let response = match target(&head) {
        Some(("GET", "/metrics")) => response("200 OK", OPEN_METRICS, &metrics()),
        Some(("GET", _)) => response("404 Not Found", PLAIN, "the metrics are at /metrics\n"),
        Some(_) => response("405 Method Not Allowed", PLAIN, "only GET is served\n"),
        None => response("400 Bad Request", PLAIN, "this is not HTTP/1\n"),
    };
    send(&mut client, response.as_bytes(), deadline)
}

/// What is left of the time; an error if nothing is.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero())
        .then_some(left)
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

fn send(client: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        client.set_write_timeout(Some(left(deadline)?))?;
        let sent = client.write(bytes)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Reads up to the empty line that ends a request without a body.
fn head(client: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        client.set_read_timeout(Some(left(deadline)?))?;
        match client.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => head.extend_from_slice(&part[..length]),
        }
    }
    Ok(head)
}

/// The method and the path of a request, without its query.
fn target(head: &[u8]) -> Option<(&str, &str)> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_http = words.next().is_none() && version.starts_with("HTTP/1.");
    let path = target.split('?').next()?;
    is_http.then_some((method, path))
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_metrics_has_them() {
        let target = |line: &str| target(line.as_bytes()).map(|(method, path)| format!("{method} {path}"));
        assert_eq!(
            target("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").as_deref(),
            Some("GET /metrics")
        );
        assert_eq!(target("POST / HTTP/1.0\r\n\r\n").as_deref(), Some("POST /"));
        for rubbish in [
            "",
            "\r\n\r\n",
            "GET /metrics\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET / HTTP/2\r\n",
        ] {
            assert_eq!(target(rubbish), None, "{rubbish:?}");
        }
    }

    /// What a client gets that sends `request` and then waits.
    fn get(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        client.write_all(request).expect("sent");
        let (server, _) = listener.accept().expect("accepted");
        let deadline = Instant::now() + Duration::from_millis(200);
        // A client that is too slow gets no answer.
        let _ = answer(server, deadline, || "counted\n".to_owned());
        let mut said = String::new();
        // It may be reset, with bytes that were not read.
        let _ = client.read_to_string(&mut said);
        said
    }

    #[test]
    fn each_client_gets_an_answer_or_an_end() {
        let metrics = get(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"));
        assert!(metrics.ends_with("Content-Length: 8\r\nConnection: close\r\n\r\ncounted\n"));
        assert!(get(b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(get(b"PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(get(b"\xff\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert_eq!(get(b"GET /metrics HTTP/1.1\r\n"), "", "no end of the head");
        assert_eq!(get(&[b'x'; 2 * MAX_HEAD]), "", "no end in sight");
    }
}
