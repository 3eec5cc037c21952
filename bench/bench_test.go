package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets this binary be every stage of a run, as the program is.
func TestMain(m *testing.M) {
	if os.Getenv(stageVariable) != "" {
		os.Exit(run(os.Args[1:], os.Stdout))
	}
	os.Exit(m.Run())
}

// short are the arguments of a run that takes a few seconds.
func short(t *testing.T, more ...string) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run as root")
	}
	for _, p := range []string{"containerd", "runc", "podman", "iptables", "ip", "/usr/lib/cni/bridge", "/bin/busybox"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v; run: deploy/packages.sh bench", err)
		}
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/...")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(build); err != nil {
		t.Fatal(err)
	}
	return append([]string{"-bin", bin, "-dir", filepath.Join(t.TempDir(), "bench"), "-vm=false", "-rounds", "1", "-starts", "2", "-pods", "1",
		"-idle", "2", "-parallel", "4", "-soak", "10", "-files", "64", "-mib", "2", "-settle", "10ms"}, more...)
}

func runOutside(ctx context.Context, t *testing.T, args []string, w io.Writer) error {
	o, err := parse(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return outside(ctx, o, args, w)
}

// leftovers lists what a run could leave on the machine.
func leftovers(t *testing.T) (list []string) {
	t.Helper()
	for _, c := range []string{
		"cut -d' ' -f5 /proc/self/mountinfo", "ls /run/netns", "ls /run", "ls -d /var/lib/cni", "ip -o link | cut -d: -f2", "iptables-save | grep -v '^[#:]'", "nft list tables",
		"losetup -n -O BACK-FILE", "ls -d /sys/fs/cgroup/*/" + groupPrefix + "* /sys/fs/cgroup/" + groupPrefix + "*", "pgrep -fa 'orlop-keeper|orlop daemon|containerd|conmon|" + workloadMark + "'",
	} {
		out, _ := exec.Command("/bin/sh", "-c", "("+c+") 2>/dev/null").Output() // what finds nothing fails
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "pgrep") {
				list = append(list, c+": "+strings.TrimSpace(line))
			}
		}
	}
	slices.Sort(list)
	return list
}

func compare(t *testing.T, before []string) {
	t.Helper()
	after := leftovers(t)
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("left behind: %s", l)
		}
	}
}

func TestShortRun(t *testing.T) {
	args := short(t)
	before := leftovers(t)
	var page bytes.Buffer
	if err := runOutside(t.Context(), t, args, &page); err != nil {
		t.Fatal(err)
	}
	compare(t, before)
	text := page.String()
	if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error("something was not measured")
	}
	for _, want := range []string{
		"| pod start, p50 | ≤ 0.20 of containerd |", "| container start to end, p50 |", "| memory per idle pod, PSS |", "| pull and unpack, p50 |",
		"| `orlop-oci run`, p50 |", "| orlop: 4 containers at once | no error | 0 errors |", "| daemon without pods, PSS |", "| size of orlop-init, stripped |",
		"| | orlop | orlop-cri | containerd | podman | orlop-cri to containerd | orlop to podman |",
		"| pod start by CRI beside containerd's, p50 | ≤ 0.20 of containerd |", "| pod start by CRI, CPU time | ≤ 35.0 ms |", "| stop and remove by CRI, p50 | ≤ 45.0 ms |", "| ExecSync, p50 | ≤ 6.0 ms |", "| pods per second by CRI, 8 at once | ≥ 45 |",
		"| memory per idle pod by CRI, PSS |", "| | orlop | orlop-oci | runc |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Cut off while pods run, a run leaves nothing either.
func TestInterrupted(t *testing.T) {
	args := short(t, "-only", "orlop,containerd", "-starts", "0", "-idle", "3", "-pods", "1", "-settle", "1h")
	before := leftovers(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	go func() { // the run rests, for good, once its single pods have run
		for ctx.Err() == nil {
			if exec.Command("pgrep", "-f", "containerd-shim.*bench").Run() == nil || exec.Command("pgrep", "-f", pauseMark).Run() == nil {
				time.Sleep(50 * time.Millisecond)
				cancel(enough)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	err := runOutside(ctx, t, args, io.Discard)
	if !errors.Is(err, context.Canceled) || !errors.Is(context.Cause(ctx), enough) {
		t.Errorf("%v, because of %v", err, context.Cause(ctx))
	}
	compare(t, before)
}

func TestTargets(t *testing.T) {
	r := &results{
		Idle: 2, PullFiles: 1, BinaryBytes: map[string]int64{"orlop-init": 3 << 20},
		Containers: []*containerResult{{Name: "orlop", Run: sample{10}, RunCPU: spent{5, 1}}, {Name: "runc", Run: sample{55}, RunCPU: spent{20, 1}}},
		Runtimes: []*podResult{
			{Name: "orlop", Start: sample{20}, StartCPU: spent{21, 1}, Pull: sample{2}, Empty: map[string]usage{"orlop": {1, 100, 100}}, Full: map[string]usage{"orlop": {1, 400, 400}}},
			{Name: "orlop-cri", Start: sample{34}, StartCPU: spent{19, 1}, Remove: sample{46}, Exec: sample{5}, PerSecond: 44, Empty: map[string]usage{"orlop": {1, 100, 100}}, Full: map[string]usage{"orlop": {1, 300, 300}}},
			{Name: "containerd", Start: sample{100}, StartCPU: spent{100, 1}, Pull: sample{4}},
		},
	}
	want := map[string]bool{"container start to end, p50": true, "the same, CPU time": false, "pod start, p50": true, "pod start, p95": true,
		"pod start, CPU time": false, "pull and unpack, p50": true, "memory per idle pod, PSS": false, "daemon without pods, PSS": true,
		"keeper without pods, RSS": true, "size of orlop-init, stripped": false,
		"pod start by CRI beside containerd's, p50": false, "pod start by CRI beside containerd's, CPU time": true, "pod start by CRI, p50": true, "pod start by CRI, CPU time": true,
		"stop and remove by CRI, p50": false, "ExecSync, p50": true, "pods per second by CRI, 8 at once": false, "memory per idle pod by CRI, PSS": true}
	got := make(map[string]bool)
	for _, x := range r.targets() {
		got[x.what] = x.ok
	}
	for what, ok := range want {
		if is, found := got[what]; !found || is != ok {
			t.Errorf("%s: %v, %v; want %v", what, is, found, ok)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
}

func TestSample(t *testing.T) {
	var s sample
	for i := 20; i > 0; i-- {
		s.add(time.Duration(i) * time.Millisecond)
	}
	if s.at(.5) != 11 || s.at(.95) != 20 || s.at(0) != 1 {
		t.Error(s.at(.5), s.at(.95), s.at(0))
	}
}
