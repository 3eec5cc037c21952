// Package e2e runs the real binaries, as a user does, on a node of its own: own
// directories, cgroup parent, network namespace with an uplink to an "outside"
// host. Everything is built with fault points, so that tests can kill the daemon
// and the keeper where they are most vulnerable.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/test/programs"
)

// bin is the directory of the binaries under test, built once by TestMain.
var bin string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests use namespaces, mounts and control groups: run as root (make test)")
		os.Exit(1)
	}
	os.Exit(func() int {
		// The daemon has the race detector where the tests have it; what runs per container not.
		dir, remove, err := programs.Build(
			programs.Program{Package: "cmd/orlop", Tags: "faults", Race: true},
			programs.Program{Package: "cmd/orlop-keeper", Tags: "faults"},
			programs.Program{Package: "cmd/orlop-init", Tags: "faults"},
			programs.Program{Package: "cmd/orlop-oci"},
			programs.Program{Package: "examples/notes"},
			programs.Program{Package: "test/e2e/testdata/tool"},
			programs.Program{Package: "cmd/orlop-oci/testdata/counter"},
		)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove()
		bin = dir
		return m.Run()
	}())
}

// node is one host: a daemon with everything it makes.
type node struct {
	t        *testing.T
	name     string // instance
	root     string
	run      string
	config   string
	netns    string // path
	uplink   string // the node's address towards the outside
	outside  string // the outside host's address, in namespace netns+"-out"
	daemon   *exec.Cmd
	exited   chan error
	log      string
	tornDown bool
}

var nodes atomic.Int32

// newNode makes a node and starts its daemon. Whatever the test did, the cleanup
// tears the node down and fails the test if anything of it is left on the machine.
func newNode(t *testing.T) *node {
	t.Helper()
	number := nodes.Add(1)
	n := &node{t: t, name: fmt.Sprintf("e2e%d-%02d", os.Getpid()%100000, number)} // none the beginning of another's
	n.root, n.run = "/var/lib/orlop-"+n.name, "/run/orlop-"+n.name
	n.netns = "/run/netns/" + n.name
	n.log = filepath.Join(t.TempDir(), "daemon.log")
	n.config = filepath.Join(t.TempDir(), "config.yaml")
	i := number % 250
	n.uplink, n.outside = fmt.Sprintf("10.209.%d.1", i), fmt.Sprintf("10.209.%d.2", i)
	n.write(n.config, fmt.Sprintf(`
instance: %s
root: %s
run: %s
log: {level: debug}
metrics: {listen: "127.0.0.1:9464"}
keeper: {binary: %s/orlop-keeper, init: %s/orlop-init}
volume: {poolSizeBytes: 2147483648, reserveBytes: 0}
`, n.name, n.root, n.run, bin, bin))
	t.Cleanup(n.close)
	n.network()
	n.start()
	return n
}

// network makes the node's network namespace and the outside host, joined by a veth.
func (n *node) network() {
	for _, args := range [][]string{
		{"netns", "add", n.name}, {"netns", "add", n.name + "-out"},
		{"-n", n.name, "link", "set", "lo", "up"}, {"-n", n.name + "-out", "link", "set", "lo", "up"},
		{"-n", n.name, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", n.name + "-out"},
		{"-n", n.name, "addr", "add", n.uplink + "/24", "dev", "up0"},
		{"-n", n.name + "-out", "addr", "add", n.outside + "/24", "dev", "up0"},
		{"-n", n.name, "addr", "add", "fd09::1/64", "dev", "up0", "nodad"},
		{"-n", n.name + "-out", "addr", "add", "fd09::2/64", "dev", "up0", "nodad"},
		{"-n", n.name, "link", "set", "up0", "up"}, {"-n", n.name + "-out", "link", "set", "up0", "up"},
		{"-n", n.name, "route", "add", "default", "via", n.outside},
		{"-n", n.name, "-6", "route", "add", "default", "via", "fd09::2"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
}

func (n *node) write(path, text string) string {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// command returns a command of the node: in its network namespace, talking to its daemon.
func (n *node) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.netns, name}, args...)...)
	cmd.Env = append(os.Environ(), "ORLOP_SOCKET="+n.run+"/orlop.sock")
	return cmd
}

// start starts the daemon and waits until it is ready. env adds to its environment.
func (n *node) start(env ...string) {
	n.t.Helper()
	if err := n.tryStart(env...); err != nil {
		n.t.Fatalf("%v\n%s", err, n.tail())
	}
}

// tryStart is start for a daemon that is expected to die.
func (n *node) tryStart(env ...string) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.daemon = n.command(context.Background(), bin+"/orlop", "daemon", "--config", n.config)
	n.daemon.Env = append(n.daemon.Env, env...)
	n.daemon.Stdout, n.daemon.Stderr = log, log
	if err := n.daemon.Start(); err != nil {
		return err
	}
	n.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(n.daemon, n.exited)
	deadline := time.After(60 * time.Second)
	for {
		select {
		case err := <-n.exited:
			n.exited <- err
			return fmt.Errorf("the daemon ended at its start: %v", err)
		case <-deadline:
			return fmt.Errorf("the daemon was not ready within a minute")
		case <-time.After(20 * time.Millisecond):
			if n.ready() {
				return nil
			}
		}
	}
}

// configure adds to the configuration and has the daemon start anew with it.
func (n *node) configure(more string) {
	n.t.Helper()
	n.kill()
	conf, err := os.ReadFile(n.config)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(n.config, string(conf)+more)
	n.start()
}

// ready asks the daemon's socket, as a person with curl would.
func (n *node) ready() bool {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.run+"/orlop.sock")
		}}}
	resp, err := c.Get("http://orlop/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// kill ends the daemon with SIGKILL and waits until it is gone.
func (n *node) kill() {
	n.t.Helper()
	n.daemon.Process.Kill()
	n.waitExit(10 * time.Second)
}

// waitExit waits until the daemon has ended by itself.
func (n *node) waitExit(d time.Duration) bool {
	select {
	case err := <-n.exited:
		n.exited <- err
		return true
	case <-time.After(d):
		return false
	}
}

func (n *node) alive() bool {
	select {
	case err := <-n.exited:
		n.exited <- err
		return false
	default:
		return true
	}
}

// keeperPID returns the process that holds the keeper's socket directory lock.
func (n *node) keeperPID() int {
	n.t.Helper()
	var pid int
	n.eventually(10*time.Second, func() error {
		pids := processes(func(args []string) bool {
			return filepath.Base(args[0]) == "orlop-keeper" && slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, n.run) })
		})
		if len(pids) != 1 {
			return fmt.Errorf("%d keepers: %v", len(pids), pids)
		}
		pid = pids[0]
		return nil
	})
	return pid
}

// processes returns the processes whose arguments match.
func processes(match func([]string) bool) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		raw, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(raw) == 0 {
			continue
		}
		if match(strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

// orlop runs the CLI; try returns its error, orlop fails the test on one.
func (n *node) orlop(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.tail())
	}
	return out
}

func (n *node) try(args ...string) (string, error) { return n.feed("", args...) }

func (n *node) feed(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := n.command(ctx, bin+"/orlop", args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("orlop %s: %w: %s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// json runs the CLI with -o json and decodes what it prints.
func (n *node) json(into any, args ...string) {
	n.t.Helper()
	out := n.orlop(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		n.t.Fatalf("orlop %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// http fetches from the node's network namespace.
func (n *node) http(method, url, body string) (string, error) {
	return httpIn(n.netns, method, url, body)
}

func httpIn(netns, method, url, body string) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialIn(netns)}}
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var buf bytes.Buffer
	buf.ReadFrom(resp.Body)
	if resp.StatusCode >= 300 {
		return buf.String(), fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, buf.String())
	}
	return buf.String(), nil
}

// dialIn dials from a network namespace.
func dialIn(netns string) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, addr string) (conn net.Conn, err error) {
		err = namespace.Do(netns, func() (err error) {
			conn, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial(network, addr)
			return err
		})
		return conn, err
	}
}

// listenIn listens in a network namespace.
func listenIn(netns, addr string) (l net.Listener, err error) {
	err = namespace.Do(netns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// eventually waits until ok returns nil.
func (n *node) eventually(d time.Duration, ok func() error) {
	n.t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("not within %s: %v\n%s", d, err, n.tail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tail returns the end of the daemon's log.
func (n *node) tail() string {
	raw, _ := os.ReadFile(n.log)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return "daemon's log:\n  " + strings.Join(lines[max(0, len(lines)-40):], "\n  ")
}

// close tears the node down and looks for what is left.
func (n *node) close() {
	if n.daemon != nil && n.alive() {
		n.daemon.Process.Signal(syscall.SIGTERM)
		if !n.waitExit(30 * time.Second) {
			n.t.Errorf("the daemon did not end on SIGTERM\n%s", n.tail())
			n.kill()
		}
	}
	if !n.tornDown {
		if _, err := n.try("system", "teardown", "--purge", "--config", n.config); err != nil {
			n.t.Errorf("teardown: %v\n%s", err, n.tail())
		}
	}
	for _, left := range n.leftovers() {
		n.t.Errorf("left behind: %s", left)
	}
	for _, ns := range []string{n.name, n.name + "-out"} {
		exec.Command("ip", "netns", "delete", ns).Run()
	}
	os.RemoveAll(n.root)
	os.RemoveAll(n.run)
}

// leftovers lists what of this node is still on the machine.
func (n *node) leftovers() (left []string) {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, n.root) || strings.Contains(line, n.run) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); strings.Contains(string(b), n.root) || strings.Contains(string(b), n.run) {
			left = append(left, "loop "+l+" "+strings.TrimSpace(string(b)))
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == n.name {
			left = append(left, "cgroup "+path)
		}
		return nil
	})
	for _, pid := range processes(func(args []string) bool {
		return slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, n.run) || strings.Contains(a, n.config) })
	}) {
		if pid != os.Getpid() {
			left = append(left, fmt.Sprintf("process %d", pid))
		}
	}
	for _, args := range [][]string{{"-n", n.name, "-o", "link"}, {"-n", n.name, "route"}, {"-n", n.name, "rule"}} {
		out, _ := exec.Command("ip", args...).Output()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "orl") || strings.Contains(line, "10.115.") {
				left = append(left, strings.Join(args, " ")+": "+strings.TrimSpace(line))
			}
		}
	}
	out, _ := exec.Command("nsenter", "--net="+n.netns, "nft", "list", "tables").Output()
	if strings.Contains(string(out), n.name) {
		left = append(left, "nft "+string(out))
	}
	for _, dir := range []string{n.root, n.run, n.run + "-roots"} {
		if _, err := os.Lstat(dir); err == nil {
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				left = append(left, "file "+path)
				if len(left) > 50 {
					return fs.SkipAll
				}
				return nil
			})
		}
	}
	return left
}
