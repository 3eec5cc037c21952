package e2e

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A real kubelet leads pods on Orlop: what it asks of a runtime, in the order and with
// the timing that it has. One kubelet serves all parts, because its start is dear; pods of
// later parts start while earlier ones are looked at.
func TestKubelet(t *testing.T) {
	k := newKubeletNode(t)
	for _, name := range []string{"http", "tcp", "grpc", "exec"} {
		k.write(k.home+"/notes/"+name, "")
	}
	k.apply("life", "probes", "crash", "logs", "memory", "host", "inside", "session")
	for _, part := range []struct {
		name string
		run  func(*testing.T, *kubeletNode)
	}{
		{"Order", testKubeletOrder},
		{"Probes", testKubeletProbes},
		{"Memory", testKubeletMemory},
		{"Limits", testKubeletLimits},
		{"Inside", testKubeletInside},
		{"HostNetwork", testKubeletHostNetwork},
		{"Sessions", testKubeletSessions},
		{"Logs", testKubeletLogs},
		{"Crash", testKubeletCrash},
		{"Summary", testKubeletSummary},
		{"Restarts", testKubeletRestarts},
		{"Images", testKubeletImages},
		{"Removal", testKubeletRemoval},
	} {
		begin := time.Now()
		t.Run(part.name, func(t *testing.T) {
			of := *k.node // what fails, fails this part
			of.t = t
			mine := *k
			mine.node = &of
			defer func() { // also where it fails
				k.node.daemon, k.node.exited, k.cmd, k.exited = of.daemon, of.exited, mine.cmd, mine.exited
			}()
			part.run(t, &mine)
		})
		t.Logf("%s took %s", part.name, time.Since(begin).Round(time.Millisecond))
	}
}

// Init containers and sidecars come first, in their order.
func testKubeletOrder(t *testing.T, k *kubeletNode) {
	k.is(60*time.Second, "life", "main", ready)
	k.soon(10*time.Second, func() error { // it is ready once it is started, and may not have come to its first line
		if got := strings.Fields(strings.ReplaceAll(k.notes("life"), " started", "")); !slices.Equal(got, []string{"first", "sidecar", "main"}) {
			return fmt.Errorf("order of the starts: %q", got)
		}
		return nil
	})
	p, err := k.pod("life")
	if err != nil {
		t.Fatal(err)
	}
	if p.Status.Phase != corev1.PodRunning || p.Status.PodIP == "" || len(p.Status.PodIPs) != 2 {
		t.Errorf("status: %+v", p.Status)
	}
	if st, _ := k.container("life", "main"); st.Image != "localhost/tool:1" {
		t.Errorf("image of a container: %q", st.Image)
	}
	if st, _ := k.container("life", "first"); st.State.Terminated == nil || st.State.Terminated.Reason != "Completed" || !st.Ready {
		t.Errorf("init container: %+v", st)
	}
}

func testKubeletProbes(t *testing.T, k *kubeletNode) {
	for _, name := range []string{"http", "tcp", "grpc"} {
		k.is(40*time.Second, "probes", name, ready)
		if err := os.Remove(k.home + "/notes/" + name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"http", "tcp", "grpc"} {
		k.is(20*time.Second, "probes", name, func(st corev1.ContainerStatus) bool { return !st.Ready && st.RestartCount == 0 })
		k.write(k.home+"/notes/"+name, "")
	}
	for _, name := range []string{"http", "tcp", "grpc"} {
		k.is(20*time.Second, "probes", name, ready)
	}
	before, err := k.container("probes", "exec")
	if err != nil || before.RestartCount != 0 {
		t.Fatalf("%+v %v", before, err)
	}
	if err := os.Remove(k.home + "/notes/exec"); err != nil {
		t.Fatal(err)
	}
	k.is(20*time.Second, "probes", "exec", func(st corev1.ContainerStatus) bool { return st.RestartCount >= 1 || st.State.Terminated != nil })
	k.write(k.home+"/notes/exec", "")
	k.is(30*time.Second, "probes", "exec", func(st corev1.ContainerStatus) bool {
		return st.RestartCount >= 1 && st.State.Running != nil && st.ContainerID != before.ContainerID
	})
}

func testKubeletMemory(t *testing.T, k *kubeletNode) {
	st := k.is(40*time.Second, "memory", "main", func(st corev1.ContainerStatus) bool { return st.State.Terminated != nil })
	if x := st.State.Terminated; x.Reason != "OOMKilled" || x.ExitCode != 137 {
		t.Errorf("ended: %+v", x)
	}
	if p, err := k.pod("memory"); err != nil || p.Status.Phase != corev1.PodFailed {
		t.Errorf("pod: %v %v", p, err)
	}
}

// Requests and limits are the container's group's, below the pod's, which kubelet makes.
func testKubeletLimits(t *testing.T, k *kubeletNode) {
	k.is(40*time.Second, "session", "main", ready)
	pid := k.pids()["session/main"]
	for _, want := range []struct{ v1, v2, value1, value2 string }{
		{"cpu/cpu.cfs_quota_us", "cpu.max", "30000", "30000 100000"},
		{"cpu/cpu.shares", "cpu.weight", "102", "4"}, // of 100m
		{"memory/memory.limit_in_bytes", "memory.max", "100663296", "100663296"},
	} {
		file, value := "/sys/fs/cgroup"+group(t, pid, "")+"/"+want.v2, want.value2
		if controller, name, _ := strings.Cut(want.v1, "/"); group(t, pid, controller) != "" {
			file, value = "/sys/fs/cgroup/"+controller+group(t, pid, controller)+"/"+name, want.value1
		}
		got, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(got)) != value {
			t.Errorf("%s is %q, want %s: %v", file, got, value, err)
		}
		if !strings.Contains(file, "/kubelet-"+k.name+"/kubepods/burstable/pod") {
			t.Errorf("the container's group is not below kubelet's for the pod: %s", file)
		}
	}
}

// group is a process's control group in the hierarchy of a v1 controller, or of v2 ("").
func group(t *testing.T, pid int, controller string) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			return f[2]
		}
	}
	return ""
}

// What the downward API and emptyDirs show, and the termination message.
func testKubeletInside(t *testing.T, k *kubeletNode) {
	k.is(40*time.Second, "inside", "main", func(st corev1.ContainerStatus) bool {
		return st.State.Terminated != nil && st.State.Terminated.ExitCode == 0 && st.State.Terminated.Message == "1"
	})
	p, err := k.pod("inside")
	if err != nil {
		t.Fatal(err)
	}
	text, err := k.get("/containerLogs/default/inside-node/main")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"POD=inside-node\n", "ADDRESS=" + p.Status.PodIP + "\n", "LIMIT=67108864\n", `colour="blue"`,
		"wrote /memory/x", "found /memory/x", "wrote /disk/x", " /memory tmpfs rw", "size=8192k",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

func testKubeletHostNetwork(t *testing.T, k *kubeletNode) {
	k.is(40*time.Second, "host", "main", ready)
	host, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", k.daemon.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid := k.pids()["host/main"]
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || got != host {
		t.Errorf("network namespace %s, the node's is %s: %v", got, host, err)
	}
	// Its address is not shown: a kubelet that stands alone knows none of its node's.
	conn, err := dialIn(k.netns)(deadline(t), "tcp", "127.0.0.1:18099")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// kubelet moves a log that has become too long and asks for it to be opened anew: no line
// is lost or doubled.
func testKubeletLogs(t *testing.T, k *kubeletNode) {
	var files, lines []string
	k.soon(60*time.Second, func() error {
		files, lines = rotated(t, k), nil
		compressed := 0
		for _, f := range files {
			if plain, gz := strings.CutSuffix(f, ".gz"); gz && !slices.Contains(files, plain) {
				compressed++
			} else if gz || strings.HasSuffix(f, ".tmp") {
				return fmt.Errorf("one is being compressed: %v", files)
			}
		}
		if len(files) < 3 || compressed == 0 {
			return fmt.Errorf("three files of the log with a compressed one expected: %v", files)
		}
		for _, f := range append(files[1:], files[0]) { // the oldest is after the one that is written
			l, err := logLines(f)
			if err != nil {
				return err
			}
			lines = append(lines, l...)
		}
		if again := rotated(t, k); !slices.Equal(files, again) {
			return fmt.Errorf("moved while it was read: %v, then %v", files, again)
		}
		return nil
	})
	first := -1
	for i, line := range lines {
		n, err := strconv.Atoi(strings.TrimPrefix(line, "count "))
		if err != nil {
			t.Fatalf("line %q", line)
		}
		if first < 0 {
			first = n
		}
		if n != first+i {
			t.Fatalf("line %d is %d: lines are lost or doubled\n%s", first+i, n, strings.Join(files, "\n"))
		}
	}
	if len(lines) < 50 {
		t.Errorf("only %d lines", len(lines))
	}
}

func rotated(t *testing.T, k *kubeletNode) []string {
	t.Helper()
	files, err := filepath.Glob(k.home + "/logs/default_logs-node_*/main/0.log*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// logLines are the whole lines of a CRI log file, compressed or not.
func logLines(file string) (lines []string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := io.Reader(f)
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, err
		}
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(raw)) {
		if _, text, ok := strings.Cut(strings.TrimSpace(line), " stdout F "); ok && strings.HasSuffix(line, "\n") {
			lines = append(lines, text)
		}
	}
	return lines, nil
}

func testKubeletCrash(t *testing.T, k *kubeletNode) {
	// While it backs off kubelet shows the last end, or that it waits, as it comes.
	st := k.is(60*time.Second, "crash", "main", func(st corev1.ContainerStatus) bool {
		return st.RestartCount >= 2 && st.State.Running == nil && (st.State.Waiting == nil || st.State.Waiting.Reason == "CrashLoopBackOff")
	})
	if x := st.LastTerminationState.Terminated; x == nil || x.ExitCode != 3 || x.Reason != "Error" || x.StartedAt.IsZero() {
		t.Errorf("its last end: %+v", x)
	}
	// Of those that have ended kubelet keeps the last: it is the one before once it waits for the next.
	k.soon(20*time.Second, func() error {
		st, err := k.container("crash", "main")
		if err != nil {
			return err
		}
		path := "/containerLogs/default/crash-node/main"
		if st.State.Terminated == nil {
			path += "?previous=true"
		}
		text, err := k.get(path)
		if err == nil && !strings.Contains(text, "to stderr") {
			err = fmt.Errorf("log of the one before: %q, while it is %+v", text, st.State)
		}
		return err
	})
}

// What kubelet's users measure.
func testKubeletSummary(t *testing.T, k *kubeletNode) {
	var s struct {
		Node struct {
			Runtime struct {
				ImageFs, ContainerFs struct{ UsedBytes, CapacityBytes, InodesUsed *uint64 }
			}
		}
		Pods []struct {
			PodRef     struct{ Name string }
			Containers []struct {
				Name   string
				CPU    struct{ UsageCoreNanoSeconds *uint64 }
				Memory struct{ WorkingSetBytes *uint64 }
				Rootfs struct{ UsedBytes *uint64 }
				Logs   struct{ UsedBytes *uint64 }
			}
			Network struct{ RxBytes *uint64 }
		}
	}
	k.soon(30*time.Second, func() error {
		text, err := k.get("/stats/summary")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		if r := s.Node.Runtime; r.ImageFs.UsedBytes == nil || *r.ImageFs.UsedBytes == 0 || r.ImageFs.CapacityBytes == nil || r.ContainerFs.UsedBytes == nil {
			return fmt.Errorf("filesystems of images and containers: %s", text)
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != "logs-node" {
				continue
			}
			if len(p.Containers) != 1 {
				return fmt.Errorf("containers of the pod: %s", text)
			}
			c := p.Containers[0]
			if c.CPU.UsageCoreNanoSeconds == nil || *c.CPU.UsageCoreNanoSeconds == 0 || c.Memory.WorkingSetBytes == nil || *c.Memory.WorkingSetBytes == 0 || c.Rootfs.UsedBytes == nil || c.Logs.UsedBytes == nil {
				return fmt.Errorf("the container's numbers: %s", text)
			}
			return nil
		}
		return fmt.Errorf("the pod is missing: %s", text)
	})
	img, err := k.c.images.ListImages(deadline(t), &v1.ListImagesRequest{})
	if err != nil || len(img.Images) != 1 {
		t.Errorf("kubelet took images away, or brought some: %v %v", img, err)
	}
}

// Neither kubelet's death nor the daemon's is one of a container.
func testKubeletRestarts(t *testing.T, k *kubeletNode) {
	stable := func(m map[string]int) map[string]int {
		m = maps.Clone(m)
		delete(m, "crash/main") // comes and goes by itself
		return m
	}
	before := stable(k.pids())
	if len(before) < 9 {
		t.Fatalf("only %v run", before)
	}
	same := func() {
		t.Helper()
		if after := stable(k.pids()); !maps.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
	}
	k.killKubelet()
	same()
	k.startKubelet()
	k.is(40*time.Second, "probes", "http", ready)
	k.is(40*time.Second, "life", "main", ready)
	same()

	k.kill()
	if err := os.Remove(k.home + "/notes/tcp"); err != nil { // something happens meanwhile
		t.Fatal(err)
	}
	k.start()
	same()
	k.is(40*time.Second, "probes", "tcp", func(st corev1.ContainerStatus) bool { return !st.Ready })
	k.write(k.home+"/notes/tcp", "")
	k.is(40*time.Second, "probes", "tcp", ready)
	same()
	begin := time.Now()
	k.apply("late")
	k.is(40*time.Second, "late", "main", func(st corev1.ContainerStatus) bool { return st.State.Running != nil })
	known := time.Since(begin)
	list, err := k.c.ListContainers(deadline(t), &v1.ListContainersRequest{Filter: &v1.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": "late-node"}}})
	if err != nil || len(list.Containers) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	started := time.Unix(0, k.c.status(t, list.Containers[0].Id).StartedAt).Sub(begin)
	t.Logf("from a manifest to a container that runs: %s; until kubelet shows it: %s", started.Round(time.Millisecond), known.Round(time.Millisecond))
	for _, name := range []string{"life", "logs", "session"} {
		if st, err := k.container(name, "main"); err != nil || st.RestartCount != 0 {
			t.Errorf("%s: %+v %v", name, st, err)
		}
	}
}

// Where the disk is too full, kubelet removes images that no container uses, and only those.
func testKubeletImages(t *testing.T, k *kubeletNode) {
	k.orlop("image", "pack", bin+"/notes", "-t", "localhost/unused:1")
	images := func() (tags []string) {
		list, err := k.c.images.ListImages(deadline(t), &v1.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list.Images {
			tags = append(tags, i.RepoTags...)
		}
		slices.Sort(tags)
		return tags
	}
	if got := images(); !slices.Equal(got, []string{"localhost/tool:1", "localhost/unused:1"}) {
		t.Fatalf("images before: %q", got)
	}
	// Short of disk, kubelet removes images and, if that is not enough, pods: but not static ones.
	k.killKubelet()
	k.configure("99%")
	k.startKubelet()
	k.soon(60*time.Second, func() error {
		if got := images(); !slices.Equal(got, []string{"localhost/tool:1"}) {
			return fmt.Errorf("images: %q", got)
		}
		return nil
	})
	k.is(10*time.Second, "life", "main", ready)
}

// A manifest that is withdrawn ends its pod with all it is owed.
func testKubeletRemoval(t *testing.T, k *kubeletNode) {
	k.withdraw("life")
	k.soon(40*time.Second, func() error {
		for name := range k.pids() {
			if strings.HasPrefix(name, "life/") {
				return fmt.Errorf("%s runs", name)
			}
		}
		return nil
	})
	want := "first\nsidecar started\nmain started\nhook\nmain got terminated\nsidecar got terminated\n"
	if got := k.notes("life"); got != want {
		t.Errorf("its life was %q, want %q", got, want)
	}
	for _, name := range []string{"probes", "crash", "logs", "memory", "host", "inside", "session", "late"} {
		k.withdraw(name)
	}
	// All that runs ends, and kubelet can remove its pods' groups. Containers it would remove
	// up to a minute later: those of Crash have shown that.
	k.soon(60*time.Second, func() error {
		if left := k.pids(); len(left) > 0 {
			return fmt.Errorf("%v run", left)
		}
		groups, err := filepath.Glob("/sys/fs/cgroup/*/kubelet-" + k.name + "/kubepods/*/pod*")
		if err != nil || len(groups) > 0 {
			return fmt.Errorf("groups of pods are left: %v %v", groups, err)
		}
		return nil
	})
}
