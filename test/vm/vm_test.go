package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/test/vm/boot"
)

func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine: left out with -short")
	}
	var out, errOut bytes.Buffer
	o := Options{Timeout: 3 * time.Minute}
	if os.Getenv("ORLOP_VM_CONSOLE") != "" {
		o.Console = os.Stderr
	}
	t.Setenv("TMPDIR", t.TempDir()) // so that what is found there is this test's
	start := time.Now()
	m, err := Boot(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	run := func(argv ...string) (int, error) {
		out.Reset()
		errOut.Reset()
		return m.Run(Command{Argv: argv, Stdout: &out, Stderr: &errOut})
	}
	code, err := run("/bin/sh", "-c", `cat /proc/self/cgroup; stat -f -c %T /sys/fs/cgroup; uname -r; id -u; echo to stderr >&2; exit 7`)
	t.Logf("%.1f s: %s", time.Since(start).Seconds(), out.String())
	if err != nil || code != 7 || errOut.String() != "to stderr\n" || !strings.HasPrefix(out.String(), "0::/\ncgroup2fs\n") {
		t.Errorf("code %d, %v, stdout %q, stderr %q", code, err, &out, &errOut)
	}
	if code, err := run("/bin/sh", "-c", "kill -9 $$"); code != 128+9 || err != nil {
		t.Errorf("a program that a signal ended: %d, %v", code, err)
	}
	if code, err := run("/no/such/program"); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("no program: %d, %v", code, err)
	}
	// One that leaves something behind that has its output; that is not the next one's.
	if code, err := run("/bin/sh", "-c", "(sleep 5; echo late) & echo early"); code != 0 || err != nil || out.String() != "early\n" {
		t.Errorf("a program that leaves another: %d, %v, %q", code, err, &out)
	}
	if code, err := run("/bin/sh", "-c", "sleep 3; head -c 3000000 /dev/zero"); code != 0 || err != nil || out.Len() != 3000000 {
		t.Errorf("much output: %d, %v, %d bytes", code, err, out.Len())
	}
	m.Close()
	if l := left(t); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
}

// left lists processes and directories of machines.
func left(t *testing.T) (list []string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		// Those of other test processes have other directories.
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(os.TempDir()+"/orlop-vm-")) {
			list = append(list, string(b))
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "orlop-vm-*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(list, dirs...)
}

// signalled is a writer that tells of the first write.
type signalled struct {
	bytes.Buffer
	first func()
}

func (s *signalled) Write(p []byte) (int, error) {
	s.first()
	return s.Buffer.Write(p)
}

func TestEndedEarlyLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine: left out with -short")
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	out := &signalled{first: func() { cancel(errors.New("we have seen enough")) }}
	code, err := Run(ctx, Options{}, Command{Argv: []string{"/bin/sh", "-c", "echo started; exec sleep 600"}, Stdout: out})
	if err == nil || !strings.Contains(err.Error(), "seen enough") {
		t.Errorf("code %d, %v", code, err)
	}
	if out.String() != "started\n" {
		t.Errorf("output %q did not come while it ran", &out.Buffer)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
}

// A machine that hangs costs minutes and not its whole time.
func TestSilent(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine: left out with -short")
	}
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	m, err := Boot(context.Background(), Options{Silence: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	code, err := m.Run(Command{Argv: []string{"/bin/sh", "-c", "sleep 2; echo one; sleep 2; echo two; exec sleep 600"}, Stdout: &out})
	if err == nil || !strings.Contains(err.Error(), "said nothing for 4s") || !strings.Contains(err.Error(), "console") || out.String() != "one\ntwo\n" {
		t.Errorf("code %d, %v, %q", code, err, &out)
	}
	defer func(d time.Duration) { patience = d }(patience)
	patience = 100 * time.Millisecond
	if _, err := Boot(context.Background(), Options{}); err == nil || !strings.Contains(err.Error(), "boot a machine: the machine has said nothing for 100ms") {
		t.Errorf("a boot that hangs: %v", err)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
}

func TestMissingPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Boot(context.Background(), Options{})
	if err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("without QEMU: %v", err)
	}
	if err := download(context.Background(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "apt-get is needed") {
		t.Errorf("without apt-get: %v", err)
	}
}

func TestModuleIndex(t *testing.T) {
	x := &boot.Index{
		Files:   map[string]string{"a": "/a.ko", "b_c": "/b-c.ko", "d": "/d.ko"},
		Depends: map[string][]string{"a": {"b_c", "d"}, "b_c": {"d"}},
		Aliases: map[string]string{"nft_expr_1_masq": "b_c", "net_pf_*_proto_16": "d"},
	}
	for in, want := range map[string]string{"a": "a", "b-c": "b_c", "nft-expr-1-masq": "b_c", "net-pf-9-proto-16": "d", "x": ""} {
		if got, _ := x.Resolve(in); got != want {
			t.Errorf("Resolve(%s) = %s, want %s", in, got, want)
		}
	}
	if got := x.Order("a"); !slices.Equal(got, []string{"/d.ko", "/b-c.ko", "/a.ko"}) {
		t.Errorf("Order = %v", got)
	}
}
