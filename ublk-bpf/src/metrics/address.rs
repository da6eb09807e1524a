//! Where metrics are served.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// An IP address and a port. Metrics have no access control, so an address that other machines can reach must be given as
/// such: with `,public`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(SocketAddr);

impl Address {
    const PUBLIC: &str = ",public";

    pub(super) const fn socket(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bare, is_public) = match text.strip_suffix(Self::PUBLIC) {
            Some(bare) => (bare, true),
            None => (text, false),
        };
        let of_port = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let address = bare.parse().map(of_port).or_else(|_| bare.parse());
        let address: SocketAddr = address.map_err(|_| {
            format!(
                "{text:?} is not an address for metrics: give PORT (of 127.0.0.1), IP:PORT or IP:PORT,public"
            )
        })?;
        if address.port() == 0 {
            return Err(format!("{text:?} has no port: give 1 to 65535"));
        }
        if !address.ip().is_loopback() && !is_public {
            return Err(format!(
                "other machines can reach {address}, and metrics have no access control: give {address},public if that is meant, or 127.0.0.1:{}",
                address.port()
            ));
        }
        Ok(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_this_machine_unless_it_says_otherwise() {
        let parse = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            ("127.0.0.2:80", "127.0.0.2:80"),
            ("[::1]:9464", "[::1]:9464"),
            ("0.0.0.0:9464,public", "0.0.0.0:9464"),
            ("[::]:9464,public", "[::]:9464"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(address), "{text}");
        }
        for (text, words) in [
            (
                "0.0.0.0:9464",
                "give 0.0.0.0:9464,public if that is meant, or 127.0.0.1:9464",
            ),
            ("192.0.2.1:1", "other machines can reach 192.0.2.1:1"),
            ("[::ffff:127.0.0.1]:1", "other machines can reach"),
            ("localhost:9464", "is not an address"),
            ("127.0.0.1", "is not an address"),
            ("70000", "is not an address"),
            ("0", "has no port"),
            ("", "is not an address"),
            ("9464,private", "is not an address"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
