//! The users file: one `name:hash` per line, hashes by argon2id. Empty lines and those with `#` are left alone.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use iot_schemas::{Error, Result};

use super::Denied;
use crate::source::doorman::Doorman;
use crate::source::secret::write_private;

/// Passwords that are checked at a time: each takes 19 MiB and one core for some ten milliseconds.
const CHECKS_AT_A_TIME: usize = 2;
/// Logins that may wait for their check. The others are told to come back.
const CHECKS_WAITING: usize = 1_000;
/// Logins from one address that may wait: whoever guesses passwords holds up others for a second or two at most.
const CHECKS_WAITING_PER_ADDRESS: usize = 100;
/// A longer password is refused unseen.
const MAX_PASSWORD_BYTES: usize = 1_024;
/// What a user that does not exist is checked against, so that the time taken tells nothing.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5$Vh2mPZ1PmcxBLf1mXJ7mPUk0yQJ7cTnmYFqAaM3Vt2k";

/// The users of a file, which is read again when it changes.
pub(super) struct Users {
    path: PathBuf,
    loaded: Mutex<Loaded>,
    /// Passwords that were right, so that a fleet that comes back at once is not checked one by one. They are kept
    /// as hashes under a key that only this process has.
    known: Mutex<HashMap<String, [u8; 32]>>,
    key: [u8; 32],
    checks: Semaphore,
    /// Counts those who wait for a check or have theirs.
    queue: Arc<Doorman>,
}

/// The file as it was last read.
#[derive(Debug, Default)]
struct Loaded {
    version: Option<(SystemTime, u64)>,
    hashes: Arc<BTreeMap<String, String>>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Users {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let loaded = Loaded { version: version(path), hashes: Arc::new(UsersFile::read(path)?.hashes()?) };
        Ok(Self {
            path: path.to_owned(),
            loaded: Mutex::new(loaded),
            known: Mutex::default(),
            key: rand::random(),
            checks: Semaphore::new(CHECKS_AT_A_TIME),
            queue: Doorman::new(CHECKS_WAITING, CHECKS_WAITING_PER_ADDRESS),
        })
    }

    /// Whether this is the user's password, as somebody at `peer` says.
    pub(super) async fn verify(&self, peer: IpAddr, user: &str, password: &[u8]) -> Result<(), Denied> {
        if password.len() > MAX_PASSWORD_BYTES {
            return Err(Denied::Credentials);
        }
        let hash = self.hashes().get(user).cloned();
        let print = self.print(hash.as_deref().unwrap_or_default(), password);
        if hash.is_some() && self.known.lock().get(user) == Some(&print) {
            return Ok(());
        }
        let _place = self.queue.let_in(peer).ok_or(Denied::Busy)?;
        let _turn = self.checks.acquire().await.map_err(|_| Denied::Busy)?;
        let (exists, password) = (hash.is_some(), password.to_vec());
        let checked =
            tokio::task::spawn_blocking(move || fits(hash.as_deref().unwrap_or(NOBODY), &password)).await;
        if !(exists && checked.unwrap_or(false)) {
            return Err(Denied::Credentials);
        }
        self.known.lock().insert(user.to_owned(), print);
        Ok(())
    }

    /// The users now. A file that cannot be read leaves the users that were known.
    fn hashes(&self) -> Arc<BTreeMap<String, String>> {
        let mut loaded = self.loaded.lock();
        let now = version(&self.path);
        if now != loaded.version {
            loaded.version = now;
            match UsersFile::read(&self.path).and_then(|file| file.hashes()) {
                Ok(hashes) => {
                    // Whose line has not changed need not be checked again, or a fleet would be at every edit.
                    self.known.lock().retain(|user, _| hashes.get(user) == loaded.hashes.get(user));
                    loaded.hashes = Arc::new(hashes);
                    tracing::info!(users = loaded.hashes.len(), "the users have changed");
                }
                Err(e) => tracing::error!("the users stay as they were: {e}"),
            }
        }
        loaded.hashes.clone()
    }

    fn print(&self, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(self.key);
        sha.update((hash.len() as u64).to_le_bytes());
        sha.update(hash);
        sha.update(password);
        sha.finalize().into()
    }
}

fn version(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Whether the hash is that of the password.
fn fits(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// The lines of a users file. Editing one leaves all others as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsersFile {
    lines: Vec<String>,
}

impl UsersFile {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the users in {}", path.display()), e))?;
        let file = Self { lines: text.lines().map(str::to_owned).collect() };
        file.hashes().map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
        Ok(file)
    }

    /// Reads the file if it is there.
    pub fn read_or_new(path: &Path) -> Result<Self> {
        if path.exists() { Self::read(path) } else { Ok(Self::default()) }
    }

    /// The names, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.hashes()?.into_keys().collect())
    }

    /// Gives a user a password, and says whether the user is new.
    pub fn put(&mut self, name: &str, password: &str) -> Result<bool> {
        check_name(name)?;
        if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
            return Err(Error::invalid(format!("a password has 1 to {MAX_PASSWORD_BYTES} bytes")));
        }
        let line = format!("{name}:{}", hash(password)?);
        match self.lines.iter_mut().find(|line| name_of(line) == Some(name)) {
            Some(old) => {
                *old = line;
                Ok(false)
            }
            None => {
                self.lines.push(line);
                Ok(true)
            }
        }
    }

    /// Takes a user out, and says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| name_of(line) != Some(name));
        self.lines.len() < before
    }

    /// Writes the file in one step, readable by its owner only.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        write_private(path, &text)
    }

    fn hashes(&self) -> Result<BTreeMap<String, String>> {
        let mut hashes = BTreeMap::new();
        for (i, line) in self.lines.iter().enumerate() {
            let Some(name) = name_of(line) else { continue };
            // The line itself is not shown: it might hold a password in the clear.
            let wrong = |why: &str| Error::invalid(format!("line {}: {why}", i + 1));
            let (_, hash) =
                line.split_once(':').filter(|(_, hash)| PasswordHash::new(hash.trim()).is_ok()).ok_or_else(
                    || wrong("it is no `name:$argon2id$...`; `iotctl user add` writes such lines"),
                )?;
            // Only now it is certain that the name is one.
            check_name(name).map_err(|e| wrong(&e.to_string()))?;
            if hashes.insert(name.to_owned(), hash.trim().to_owned()).is_some() {
                return Err(wrong(&format!("the user `{name}` is there twice")));
            }
        }
        Ok(hashes)
    }
}

fn name_of(line: &str) -> Option<&str> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with('#')).then(|| line.split(':').next().unwrap_or_default())
}

fn hash(password: &str) -> Result<String> {
    let failed = |e: argon2::password_hash::Error| Error::invalid(format!("hashing the password: {e}"));
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(failed)?;
    Ok(Argon2::default().hash_password(password.as_bytes(), &salt).map_err(failed)?.to_string())
}

/// A name becomes part of topics and a line of a file, so it must have no meaning in either.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_bad = |c: char| c.is_control() || "+#/:{}".contains(c);
    if name.is_empty()
        || name.len() > 128
        || name.trim() != name
        || name.starts_with('$')
        || name.contains(is_bad)
    {
        return Err(Error::invalid(format!(
            "`{}` cannot be a user's name: it must have 1 to 128 bytes, none of + # / : {{ }}, and not begin with $",
            name.escape_debug()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_password_is_checked_and_a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        let mut file = UsersFile { lines: vec!["# plant 1".to_owned()] };
        assert!(file.put("oven-1", "warm").expect("a user"));
        file.write(&path).expect("written");
        let users = Users::open(&path).expect("users");
        let verify = async |user, password: &[u8]| users.verify(HERE, user, password).await;
        for _ in 0..2 {
            assert_eq!(verify("oven-1", b"warm").await, Ok(()));
            assert_eq!(verify("oven-1", b"cold").await, Err(Denied::Credentials));
            assert_eq!(verify("oven-2", b"warm").await, Err(Denied::Credentials));
            assert_eq!(verify("oven-1", b"").await, Err(Denied::Credentials));
        }
        assert!(!file.put("oven-1", "hot").expect("a user"));
        assert!(file.put("a", "b").expect("a user"));
        file.write(&path).expect("written");
        assert_eq!(verify("oven-1", b"warm").await, Err(Denied::Credentials));
        assert_eq!(verify("oven-1", b"hot").await, Ok(()));
        std::fs::write(&path, "rubbish").expect("written");
        assert_eq!(verify("oven-1", b"hot").await, Ok(()), "a broken file changes nothing");
    }

    #[tokio::test]
    async fn who_is_known_stays_known_unless_his_own_line_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        let mut file = UsersFile::default();
        for user in ["stays", "changes", "goes"] {
            file.put(user, "warm").expect("a user");
        }
        file.write(&path).expect("written");
        let users = Users::open(&path).expect("users");
        for user in ["stays", "changes", "goes"] {
            assert_eq!(users.verify(HERE, user, b"warm").await, Ok(()));
        }
        file.put("changes", "hot").expect("a user");
        file.put("comes", "warm").expect("a user");
        assert!(file.remove("goes"));
        file.write(&path).expect("written");
        // Nobody is checked any more, so only those get in who need not be.
        users.checks.close();
        assert_eq!(users.verify(HERE, "stays", b"warm").await, Ok(()));
        for (user, password) in [("changes", b"warm"), ("goes", b"warm"), ("comes", b"warm")] {
            assert_eq!(users.verify(HERE, user, password).await, Err(Denied::Busy), "{user}");
        }
        assert_eq!(users.known.lock().keys().collect::<Vec<_>>(), ["stays"]);
    }

    #[tokio::test]
    async fn one_address_cannot_keep_all_others_from_their_check() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        let mut file = UsersFile::default();
        file.put("oven-1", "warm").expect("a user");
        file.write(&path).expect("written");
        let users = Arc::new(Users::open(&path).expect("users"));
        // Nobody's turn comes until these are given back.
        let turns = users.checks.acquire_many(CHECKS_AT_A_TIME as u32).await.expect("turns");
        let guesses: Vec<_> = (0..CHECKS_WAITING_PER_ADDRESS)
            .map(|_| {
                let users = users.clone();
                tokio::spawn(async move { users.verify(HERE, "oven-1", b"guess").await })
            })
            .collect();
        while users.queue.let_in(HERE).is_some() {
            tokio::task::yield_now().await;
        }
        assert_eq!(users.verify(HERE, "oven-1", b"guess").await, Err(Denied::Busy));
        guesses.iter().for_each(|guess| guess.abort());
        for guess in guesses {
            assert!(guess.await.is_err(), "it was still waiting");
        }
        let full = (0..CHECKS_WAITING_PER_ADDRESS).map(|_| users.queue.let_in(HERE));
        let full: Vec<_> = full.map(|place| place.expect("whoever is gone waits no more")).collect();
        drop(turns);
        let elsewhere = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(users.verify(elsewhere, "oven-1", b"warm").await, Ok(()));
        drop(full);
    }

    #[test]
    fn a_file_keeps_its_comments_and_no_password() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        std::fs::write(&path, "# one\n\n").expect("written");
        let mut file = UsersFile::read(&path).expect("a file");
        file.put("a", "opensesame").expect("a user");
        file.write(&path).expect("written");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(text.starts_with("# one\n\na:$argon2id$") && !text.contains("opensesame"), "{text}");
        assert!(file.remove("a") && !file.remove("a"));
        assert_eq!(file.names().expect("names"), Vec::<String>::new());
    }

    #[test]
    fn a_bad_line_is_named_but_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("users");
        for line in ["a:opensesame", "opensesame", "open/sesame", "open+sesame:opensesame"] {
            std::fs::write(&path, format!("{line}\n")).expect("written");
            let error = UsersFile::read(&path).expect_err("no hash").to_string();
            assert!(error.contains("line 1") && !error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn a_name_with_a_meaning_in_topics_is_refused() {
        assert!(check_name("oven-1").is_ok() && check_name("ä b.example").is_ok());
        for bad in ["", "+", "a/b", "#", "a:b", "$SYS", " a", "{user}", "a\nb"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nobody_takes_as_long_as_somebody() {
        let nobody = PasswordHash::new(NOBODY).expect("a hash");
        let somebody = hash("x").expect("a hash");
        let somebody = PasswordHash::new(&somebody).expect("a hash");
        assert_eq!((nobody.algorithm, nobody.params), (somebody.algorithm, somebody.params.clone()));
        assert_eq!(nobody.hash.map(|h| h.len()), somebody.hash.map(|h| h.len()));
    }
}
