package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is this one with directories, network and names of its own, so that what is
// installed on it, and an Orlop that runs on it, are not touched.
type machine struct {
	t    *testing.T
	pid  int // of the process that holds its namespaces
	name string
}

// machineScript makes the directories in which Orlop keeps things the machine's own:
// nothing of them may be on an overlay, on which a container's cannot lie.
const machineScript = `set -e
own=$1 name=$2
mkdir -p $own/lib $own/etc $own/work
ip link set lo up
mkdir $own/was
mount --bind /var/lib $own/was
mount --bind $own/lib /var/lib
for d in dpkg apt; do [ ! -d $own/was/$d ] || { mkdir /var/lib/$d; mount --bind $own/was/$d /var/lib/$d; }; done
umount $own/was
mount -t overlay -o lowerdir=/etc,upperdir=$own/etc,workdir=$own/work overlay /etc
mkdir -p /etc/orlop
echo "instance: $name" >/etc/orlop/config.yaml
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/lock
exec sleep 1000`

func newMachine(t *testing.T) *machine {
	t.Helper()
	own, err := os.MkdirTemp("/var/tmp", "orlop-e2e-machine-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, name: fmt.Sprintf("readme%d", os.Getpid())}
	holder := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", machineScript, "machine", own, m.name)
	var errOut strings.Builder
	holder.Stderr = &errOut
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	m.pid = holder.Process.Pid
	t.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait()
		if err := os.RemoveAll(own); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid)); string(raw) == "sleep\n" {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatalf("the machine does not come up: %s", errOut.String())
		}
	}
}

// sh runs a line as a user would type it in the source tree.
func (m *machine) sh(line string) string {
	m.t.Helper()
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(m.pid), "--mount", "--net", "bash", "-c", "cd "+m.root()+" && "+line)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(m.root(), "bin")+":"+os.Getenv("PATH"), "MAKEFLAGS=")
	cmd.WaitDelay = time.Second // the daemon may keep the output
	out, err := cmd.CombinedOutput()
	m.t.Logf("$ %s\n%s", line, out)
	if err != nil && err != exec.ErrWaitDelay {
		m.t.Fatalf("%s: %v", line, err)
	}
	return string(out)
}

func (m *machine) root() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		m.t.Fatal(err)
	}
	return dir
}

// state is what Orlop may leave behind in the machine, or of it outside.
func (m *machine) state() string {
	m.t.Helper()
	out := m.sh(`awk '{print "mount", $5}' /proc/self/mountinfo; ip -o link | cut -d: -f2; ip rule; ip -6 rule; ip route show table all; nft list tables
		ls -A /run /run/netns /var/lib; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding; losetup -n -O BACK-FILE | grep /orlop/ || true
		find /sys/fs/cgroup -name ` + m.name + ` 2>/dev/null; true`)
	for _, pid := range processes(func(args []string) bool { return strings.HasPrefix(filepath.Base(args[0]), "orlop") }) {
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); ns == m.mountNamespace() {
			out += fmt.Sprintln("process", pid)
		}
	}
	return out
}

func (m *machine) mountNamespace() string {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", m.pid))
	if err != nil {
		m.t.Fatal(err)
	}
	return ns
}

// footprint holds the programs to what they may take: they are here as they are shipped.
func (m *machine) footprint() {
	m.t.Helper()
	for name, most := range map[string]int64{"orlop-init": 5 << 19, "orlop-keeper": 10 << 20} {
		if info, err := os.Stat(filepath.Join(m.root(), "bin", name)); err != nil || info.Size() > most {
			m.t.Errorf("%s is larger than %d bytes: %v, %v", name, most, info, err)
		}
	}
	pid := strings.TrimSpace(m.sh("cat /run/orlop/daemon.pid"))
	raw, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	match := regexp.MustCompile(`(?m)^Pss: +(\d+) kB`).FindSubmatch(raw)
	if err != nil || match == nil {
		m.t.Fatalf("memory of the daemon: %v: %s", err, raw)
	}
	const most = 60 << 10
	kib, _ := strconv.Atoi(string(match[1]))
	m.t.Logf("the daemon takes %.1f MiB (PSS)", float64(kib)/1024)
	if kib > most {
		m.t.Errorf("the daemon takes %d KiB (PSS), more than %d", kib, most)
	}
}

// What README.md says, and what `make up` says to try next, is true.
func TestReadme(t *testing.T) {
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, match := range regexp.MustCompile(`(?m)^    ((?:make|orlop) [^#\n]*)`).FindAllStringSubmatch(string(raw), -1) {
		commands = append(commands, strings.TrimSpace(match[1]))
	}
	// `make test` is what runs this; pod.yaml stands for anybody's manifest.
	if want := []string{"orlop apply -f pod.yaml", "make up", "make test", "make down", "make down PURGE=1"}; !slices.Equal(commands, want) {
		t.Fatalf("README.md has the commands %q; this test tries %q", commands, want)
	}
	m := newMachine(t)
	t.Cleanup(func() {
		if t.Failed() {
			exec.Command("nsenter", "--target", strconv.Itoa(m.pid), "--mount", "--net", m.root()+"/bin/orlop", "system", "teardown", "--purge").Run()
		}
	})
	before := m.state()

	up := m.sh("make up")
	if !strings.Contains(up, "http://127.0.0.1:8080/") || !strings.Contains(up, "2/2     Running") {
		t.Errorf("`make up` does not say what runs, and where")
	}
	m.sh("chown -R --reference=. bin") // root has built; whose tree it is must be able to
	m.footprint()
	// The lines to try next: two spaces, the command, and what it shows.
	var tried []string
	last := ""
	for _, match := range regexp.MustCompile(`(?m)^  ((?:curl|orlop|kill|make) .*)$`).FindAllStringSubmatch(up, -1) {
		command := regexp.MustCompile(` {3,}.*$`).ReplaceAllString(match[1], "")
		tried = append(tried, command)
		switch {
		case strings.HasSuffix(command, " -f"): // goes on for ever
			command = "timeout 2 " + command + " | grep -m 1 notes="
		case strings.Contains(command, " exec -it "): // there is no terminal here
			command = strings.Replace(command, " -it ", " -i ", 1)
		}
		out := m.sh(command)
		if strings.HasPrefix(command, "curl http") && !strings.Contains(out, "my first note") {
			t.Errorf("after %q the note is not there: %s", last, out)
		}
		last = command
	}
	if len(tried) != 9 {
		t.Errorf("`make up` says to try %q", tried)
	}
	m.sh("make down")
	m.sh("make up") // and the data is there
	if out := m.sh("curl -s http://127.0.0.1:8080/notes"); !strings.Contains(out, "my first note") {
		t.Errorf("after `make down` the note is gone: %s", out)
	}
	m.sh("make down PURGE=1")
	// The keeper and what it kept end a moment after they are told to.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		after := m.state()
		if after == before {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("not as it was:\n%s\n--- before:\n%s", after, before)
			break
		}
	}
	for _, pid := range processes(func([]string) bool { return true }) {
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); ns == m.mountNamespace() && pid != m.pid {
			t.Errorf("process %d is left", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
