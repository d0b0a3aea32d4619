//! The shell that starts the server and outlives us: its input is a pipe that the system closes
//! when this process ends, in whatever way. Then it ends the server and removes the directory.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::process;
use super::programs::{Programs, unprivileged};

pub(super) struct Watchdog {
    shell: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Arguments: the cluster's directory, the server's program. Each word of the input draws one line.
///
/// A server that was killed leaves a System V segment, which only the next server on the same files
/// would remove: its id is the last word of the seventh line of the pid file. The system hangs up
/// on a group that lost its parent and has a stopped process in it.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
cd "$1" || exit 3
pid=
while read -r word; do
    case $word in
        start)
            [ -z "$pid" ] || wait "$pid"
            "$2" -D "$1/data" </dev/null >>log 2>&1 &
            pid=$!
            echo "$pid"
            ;;
        fill)
            head -c 1G /dev/zero >small/filler 2>/dev/null
            echo full
            ;;
        free)
            rm small/filler
            echo free
            ;;
    esac
done
if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
    for stat in /proc/[0-9]*/stat; do
        read -r child name state parent rest <"$stat" && [ "$parent" = "$pid" ] && kill -CONT "$child"
    done 2>/dev/null
    kill -CONT "$pid"
    kill -QUIT "$pid"
    wait "$pid"
fi
if segment=$(sed -n '7s/.* //p' data/postmaster.pid) && [ -n "$segment" ]; then
    ipcrm -m "$segment"
fi 2>/dev/null
cd / && rm -rf "$1"
"#;

/// Arguments: the directory of the small file system, its size, then the program that sees it. In a
/// chroot the root is no mount point, so that nobody can make it private; therefore it is taken
/// away at the end.
const MOUNT: &str = r#"
small=$1
trap '' HUP INT TERM
mount --make-rprivate / 2>/dev/null
mount -t tmpfs -o "size=${2}m,mode=0700,uid=$3,gid=$4" tmpfs "$small" || exit 3
shift 4
"$@"
umount "$small"
rm -rf "${small%/small}"
"#;

impl Watchdog {
    /// With a file system of so many MiB at `small`, if asked for.
    pub(super) fn start(directory: &Path, programs: &Programs, small: Option<u32>) -> Self {
        let mut command = unprivileged("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(directory)
            .arg(programs.path("postgres"));
        if let Some(mebibytes) = small {
            command = with_small_file_system(&command, &directory.join("small"), mebibytes);
        }
        let complaints = File::create(directory.join("watchdog")).expect("writable");
        // A group of its own: what a terminal sends to the tests is not meant for it.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints);
        let mut shell = command.spawn().expect("sh runs");
        let words = shell.stdin.take().expect("piped");
        let answers = BufReader::new(shell.stdout.take().expect("piped"));
        Self {
            shell,
            words,
            answers,
        }
    }

    /// Says a word and waits for the answer.
    pub(super) fn ask(&mut self, word: &str) -> String {
        writeln!(self.words, "{word}").expect("the watchdog lives");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("readable");
        assert!(!answer.is_empty(), "the watchdog has ended");
        answer.trim_end().to_owned()
    }

    /// Ends the server and removes the directory.
    pub(super) fn end(self) {
        let Self {
            mut shell,
            words,
            answers,
        } = self;
        drop((words, answers));
        let pid = shell.id();
        if process::until(|| !process::is_alive(pid)) {
            let _ = shell.wait();
        }
    }
}

/// An ordinary user needs a user namespace for that, in which they must stay who they are:
/// PostgreSQL refuses root there too.
fn with_small_file_system(inner: &Command, at: &Path, mebibytes: u32) -> Command {
    use std::os::unix::fs::MetadataExt;
    std::fs::create_dir(at).expect("writable");
    super::programs::owned(at);
    let owner = std::fs::metadata(at).expect("there");
    let root = std::fs::metadata("/proc/self")
        .expect("proc is mounted")
        .uid()
        == 0;
    let mut command = Command::new("unshare");
    command.args(if root {
        &["--mount"][..]
    } else {
        &["--user", "--map-current-user", "--keep-caps", "--mount"]
    });
    command
        .args(["--propagation", "unchanged", "sh", "-c", MOUNT, "sh"])
        .arg(at)
        .arg(mebibytes.to_string());
    command
        .args([owner.uid().to_string(), owner.gid().to_string()])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir("/");
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
