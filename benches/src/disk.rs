//! What the disk and the network of this machine do without a store.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Of a copy.
const BUFFER: usize = 1 << 20;

/// Appends so many bytes and syncs them, again and again: how often a second, for one who waits for each.
pub(crate) fn syncs_per_s(dir: &Path, bytes: usize, elapsed: Duration) -> io::Result<f64> {
    let path = dir.join("syncs");
    let mut file = File::create(&path)?;
    let (value, began) = (vec![0x5a; bytes], Instant::now());
    let mut syncs = 0_u32;
    while began.elapsed() < elapsed {
        file.write_all(&value)?;
        // fdatasync
        file.sync_data()?;
        syncs += 1;
    }
    let took = began.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(f64::from(syncs) / took)
}

/// Reads the tables of a store, sends them through a connection of loopback, and writes and syncs them at the other end, in `dir`:
/// bytes a second. None without tables.
pub(crate) fn copy_bytes_per_s(store: &Path, dir: &Path) -> io::Result<Option<f64>> {
    let files = tables(store)?;
    if files.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let path = dir.join("copy");
    let began = Instant::now();
    let sending = std::thread::spawn(move || -> io::Result<()> {
        let mut to = TcpStream::connect(address)?;
        for file in files {
            match File::open(file) {
                Ok(mut file) => {
                    io::copy(&mut file, &mut to)?;
                }
                // A compaction has replaced it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        to.flush()
    });
    let (mut from, _) = listener.accept()?;
    let mut file = File::create(&path)?;
    let (mut buffer, mut bytes) = (vec![0; BUFFER], 0_u64);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    file.sync_all()?;
    let took = began.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    match sending.join() {
        Ok(sent) => sent?,
        Err(_) => return Err(io::Error::other("the sending thread has ended badly")),
    }
    Ok((bytes > 0).then(|| bytes as f64 / took))
}

fn tables(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut tables(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "sst") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_syncs_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(syncs_per_s(dir.path(), 1024, Duration::from_millis(20)).unwrap() > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn tables_are_copied_wherever_they_are_and_nothing_else() {
        let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(copy_bytes_per_s(store.path(), dir.path()).unwrap(), None);
        fs::create_dir(store.path().join("data")).unwrap();
        fs::write(store.path().join("data/1.sst"), vec![1; 3 << 20]).unwrap();
        fs::write(store.path().join("LOG"), "text").unwrap();
        assert_eq!(tables(store.path()).unwrap(), [store.path().join("data/1.sst")]);
        assert!(copy_bytes_per_s(store.path(), dir.path()).unwrap().unwrap() > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
