//! Where the processes of a cluster listen.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use super::ClusterError;

/// The addresses of all processes. Looked up again for every attempt: names may resolve late, and a
/// process that was started again may have moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// `host:port` with `{index}` in it.
    Template(String),
    /// A file with the `host:port` of process i in line i; a line `-` for one that is not known yet.
    File(PathBuf),
}

impl Hosts {
    /// What is written for process `index`.
    ///
    /// # Errors
    /// [`ClusterError::NoAddress`].
    pub fn of(&self, index: usize) -> Result<String, ClusterError> {
        let missing = |problem: String| ClusterError::NoAddress { index, problem };
        let address = match self {
            Self::Template(template) if !template.contains("{index}") => {
                return Err(missing(format!(
                    "\"{template}\" has no {{index}}; write --host-template 'mill-{{index}}.mill:7000'"
                )));
            }
            Self::Template(template) => template.replace("{index}", &index.to_string()),
            Self::File(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path)
                    .map_err(|error| missing(format!("\"{shown}\" cannot be read: {error}")))?;
                let line = text.lines().nth(index).map(str::trim).filter(|line| *line != "-");
                line.ok_or_else(|| missing(format!("\"{shown}\" has no line {}", index + 1)))?
                    .to_owned()
            }
        };
        match port_of(&address) {
            Some(_) => Ok(address),
            None => Err(missing(format!("\"{address}\" is no host:port"))),
        }
    }

    /// The port that process `index` is dialed at.
    ///
    /// # Errors
    /// [`ClusterError::NoAddress`].
    pub fn port(&self, index: usize) -> Result<u16, ClusterError> {
        Ok(port_of(&self.of(index)?).expect("an address has a port"))
    }

    /// Where process `index` is to be dialed now; why not otherwise.
    pub(super) fn resolve(&self, index: usize) -> Result<Vec<SocketAddr>, String> {
        let address = self.of(index).map_err(|error| error.to_string())?;
        let found = address.to_socket_addrs();
        let found = found.map_err(|error| format!("\"{address}\" does not resolve: {error}"))?;
        let found: Vec<_> = found.collect();
        match found.is_empty() {
            true => Err(format!("\"{address}\" does not resolve")),
            false => Ok(found),
        }
    }
}

fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|_| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_files_name_addresses() {
        let template = Hosts::Template("mill-{index}.mill:7000".into());
        assert_eq!(template.of(3).unwrap(), "mill-3.mill:7000");
        assert_eq!(template.port(3).unwrap(), 7000);
        let without = Hosts::Template("mill:7000".into()).of(1).unwrap_err().to_string();
        assert!(without.contains("{index}"), "{without}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "a:1\n-\nc\n").unwrap();
        let file = Hosts::File(path);
        assert_eq!(file.of(0).unwrap(), "a:1");
        for index in 1..4 {
            assert!(file.of(index).is_err());
        }
        assert!(Hosts::File("nowhere".into()).of(0).unwrap_err().to_string().contains("nowhere"));
        let late = Hosts::Template("tidemill-{index}.invalid:1".into()).resolve(0).unwrap_err();
        assert!(late.contains("does not resolve"), "{late}");
    }
}
