package vm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/test/programs"
)

// node is a machine that is run as the README says, by deploy/up.sh and deploy/down.sh, with
// systemd, from a directory that looks like the source's.
type node struct {
	*Machine
	t   *testing.T
	dir string
}

// makeDisk makes a file with an empty ext4 for Options.Disk.
func makeDisk(t *testing.T, disk string) string {
	t.Helper()
	if f, err := os.Create(disk); err != nil || f.Truncate(6<<30) != nil || f.Close() != nil {
		t.Fatal("make a disk: ", err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return disk
}

func bootNode(t *testing.T, dir, disk string) *node {
	t.Helper()
	m, err := Boot(context.Background(), Options{MemoryMiB: 2048, Systemd: true, Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{m, t, dir}
	n.sh("mkdir -p /var/lib/orlop && mount /dev/vda /var/lib/orlop")
	return n
}

// sh runs a script in dir and returns its output. What it may use is in preamble.
func (n *node) sh(script string) string {
	n.t.Helper()
	var out, talk bytes.Buffer
	start := time.Now()
	code, err := n.Run(Command{Argv: []string{"/bin/bash", "-c", preamble + script}, Dir: n.dir, Stdout: &out, Stderr: &talk,
		Env: []string{"PATH=" + n.dir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}})
	if err != nil || code != 0 {
		var log bytes.Buffer
		if err == nil {
			n.Run(Command{Argv: []string{"/bin/sh", "-c", "systemctl status --no-pager orlop; dmesg | tail -n 30; tail -n 50 /var/lib/orlop/*.log"}, Stdout: &log, Stderr: &log})
		}
		n.t.Fatalf("exit code %d, %v of: %s\n%s%s\n%s", code, err, script, &out, &talk, &log)
	}
	n.t.Logf("%.1f s: %s", time.Since(start).Seconds(), strings.SplitN(script, "\n", 2)[0])
	return strings.TrimSpace(out.String())
}

const preamble = `set -euo pipefail
main() { systemctl show -P MainPID orlop; }
web() { pgrep -x -f '/bin/notes serve'; }
keeper() { pgrep -f '^[^ ]*/orlop-keeper'; }
notes() { curl -sS --fail --max-time 20 http://127.0.0.1:8080/notes; }
note() { curl -sS --fail --max-time 20 -o /dev/null -d "text=$1" http://127.0.0.1:8080/notes; }
within() { # SECONDS COMMAND...: until it succeeds
	local end=$((SECONDS + $1)); shift
	until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "not in time: $*"; "$@"; return 1; } >&2; sleep 0.2; done
}
is() { [ "$1" = "$2" ] || { echo "it is $1 and not $2" >&2; return 1; }; }
`

// TestNode is the life of a node under systemd: installed by `make up`, its daemon
// restarted, killed and stopped while containers go on; the machine loses its power, and
// comes back with its pods and what was acknowledged; `make down` leaves nothing.
func TestNode(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines: left out with -short")
	}
	built, remove, err := programs.Build(
		programs.Program{Package: "cmd/orlop"}, programs.Program{Package: "cmd/orlop-keeper"},
		programs.Program{Package: "cmd/orlop-init", LDFlags: "-s -w"}, programs.Program{Package: "examples/notes"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	dir, root := t.TempDir(), moduleDir(t)
	if err := os.CopyFS(filepath.Join(dir, "deploy"), os.DirFS(filepath.Join(root, "deploy"))); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"bin": built, "examples": filepath.Join(root, "examples")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	disk := makeDisk(t, filepath.Join(dir, "disk"))

	n := bootNode(t, dir, disk)
	defer func() { n.Kill() }()
	n.sh(`deploy/up.sh >&2`)
	n.sh(`is "$(systemctl is-active orlop) $(systemctl show -P Type orlop)" "active notify"
		is "$(systemctl show -P CanReload orlop)" no # what is configured is read at a start
		[[ $(orlop system info) == *'v2, driver systemd'* ]]`)
	// Containers are in scopes of their own, which systemd neither ends nor counts with the daemon.
	n.sh(`cgroup=$(cat /proc/$(web)/cgroup)
		[[ $cgroup == 0::/orlop.slice/orlop-*.slice/*.scope ]] || { echo "web is in $cgroup" >&2; exit 1; }`)
	n.sh(`note 'before the daemon is restarted'
		web=$(web) keeper=$(keeper) main=$(main)
		systemctl restart orlop
		[ "$(main)" != $main ]
		is "$(web) $(keeper)" "$web $keeper"
		note 'before the daemon is killed'
		main=$(main)
		kill -9 $main
		again() { [ "$(main)" != $main ] && [ "$(systemctl is-active orlop)" = active ]; }
		within 60 again
		is "$(web) $(keeper)" "$web $keeper"
		systemctl stop orlop
		is "$(systemctl is-active orlop || true)" inactive
		is "$(web) $(keeper)" "$web $keeper"
		note 'while the daemon is stopped'
		systemctl daemon-reload
		systemctl start orlop
		is "$(web) $(keeper)" "$web $keeper"`)
	n.sh(`web=$(web) keeper=$(keeper)
		kill -9 $keeper
		another() { k=$(keeper) && [ "$k" != $keeper ] && orlop exec notes -c web -- /bin/notes check; }
		within 60 another
		is "$(web)" $web`)
	n.sh(`note 'the last before the power is lost'`)
	n.Kill()

	n = bootNode(t, dir, disk)
	// What a boot does with a unit that is enabled.
	n.sh(`sed "s|@BIN@|$PWD/bin|" deploy/orlop.service >/etc/systemd/system/orlop.service
		systemctl enable --quiet --now orlop
		within 120 notes
		orlop ps >&2`)
	all := n.sh("notes")
	for _, text := range []string{"written by the init container", "before the daemon is restarted", "before the daemon is killed",
		"while the daemon is stopped", "the last before the power is lost"} {
		if !strings.Contains(all, text) {
			t.Errorf("note %q is not in %s", text, all)
		}
	}
	n.sh(`PURGE=1 deploy/down.sh >&2`)
	if left := n.sh(`set +e
		systemctl list-units --all --no-legend --plain 'orlop.*' 'orlop-*.slice' 'orlop-*.scope' | grep -v orlop-vm
		ls -d /etc/systemd/system/*/orlop.service /etc/systemd/system/orlop.service /run/systemd/transient/orlop* 2>/dev/null
		pgrep -a '^orlop|^notes'
		grep orlop /proc/self/mountinfo | grep -v -e ' /run/orlop-vm' -e ' /var/lib/orlop '
		find /sys/fs/cgroup -type d -name 'orlop*' | grep -v orlop-vm
		ls -d /run/orlop /run/netns/* 2>/dev/null
		ls -A /var/lib/orlop | grep -v lost+found
		mountpoint -q /var/lib/orlop || echo the disk is not mounted any more
		ip -o link | grep ': ol'
		nft list tables
		losetup -n -O NAME,BACK-FILE
		true`); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	n.Close()
}
