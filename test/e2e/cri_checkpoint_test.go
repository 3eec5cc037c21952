package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/test/checkpoints"
)

// counting starts a container that counts, in a pod of its own.
func (c *client) counting(t *testing.T) *counting {
	t.Helper()
	c.n.orlop("image", "pack", bin+"/counter", "-t", "localhost/counter:1", "--entrypoint", "/bin/counter")
	conf := criContainer("counter")
	conf.Image.Image = "localhost/counter:1"
	tmp := t.TempDir()
	conf.Mounts = []*v1.Mount{{HostPath: tmp, ContainerPath: "/tmp"}}
	conf.Annotations = map[string]string{"io.kubernetes.container.hash": "abc"}
	k := &counting{c: c, t: t, conf: conf, pod: c.run(t, c.sandbox())}
	k.id = c.start(t, k.pod, conf)
	k.log = c.n.root + "/containers/" + k.id + "/upper/log"
	k.counts()
	k.pid = c.pid(t, k.id)
	return k
}

type counting struct {
	c            *client
	conf         *v1.ContainerConfig
	t            *testing.T
	pod, id, log string
	pid          int
}

// lines are those that the counter has written.
func (k *counting) lines() int {
	k.t.Helper()
	return checkpoints.Counted(k.t, k.log)
}

// counts waits until some more has been counted.
func (k *counting) counts() (n int) {
	k.t.Helper()
	was := k.lines()
	k.c.n.eventually(30*time.Second, func() error {
		if n = k.lines(); n <= was+3 {
			return fmt.Errorf("it is at %d, and was at %d", n, was)
		}
		return nil
	})
	return n
}

// goesOn tells that the container is the same, runs, and counts, and that packets reach its pod.
func (k *counting) goesOn() {
	k.t.Helper()
	k.counts()
	if st := k.c.status(k.t, k.id); st.State != v1.ContainerState_CONTAINER_RUNNING {
		k.t.Errorf("the container is %s", st.State)
	}
	if pid := k.c.pid(k.t, k.id); pid != k.pid {
		k.t.Errorf("its process is %d, and was %d", pid, k.pid)
	}
	if out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", k.pid), "iptables", "-S").CombinedOutput(); err == nil && strings.Contains(string(out), "CRIU") {
		k.t.Errorf("the pod's network is locked:\n%s", out)
	}
}

func (k *counting) save(location string) error {
	_, err := k.c.CheckpointContainer(deadline(k.t), &v1.CheckpointContainerRequest{ContainerId: k.id, Location: location, Timeout: 50})
	return err
}

// nothing tells that a directory has those files alone, and that nothing is left of checkpoints.
func (k *counting) nothing(dir string, but ...string) {
	k.t.Helper()
	if left, _ := filepath.Glob(k.c.n.root + "/checkpoints/*"); len(left) > 0 {
		k.t.Errorf("left: %v", left)
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		k.t.Fatal(err)
	}
	var names []string
	for _, e := range ents {
		names = append(names, e.Name())
	}
	if fmt.Sprint(names) != fmt.Sprint(but) {
		k.t.Errorf("%s has %v, want %v", dir, names, but)
	}
}

// Where CRIU cannot work, and what cannot be saved, is said before anything is touched.
func TestCRICheckpointRefused(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	k := c.counting(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("somebody's"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		location string
		code     codes.Code
		text     string
	}{
		{"", codes.InvalidArgument, "absolute path"},
		{"c.tar", codes.InvalidArgument, "absolute path"},
		{dir + "/../c.tar", codes.InvalidArgument, "absolute path"},
		{dir + "/c.tar/", codes.InvalidArgument, "absolute path"},
		{dir + "/none/c.tar", codes.InvalidArgument, "make it first"},
		{dir + "/file/c.tar", codes.InvalidArgument, "not a directory"},
		{dir + "/file", codes.AlreadyExists, "give another path"},
		{dir, codes.AlreadyExists, "give another path"},
	} {
		wantCode(t, k.save(tt.location), tt.code, tt.text)
	}
	_, err := c.CheckpointContainer(deadline(t), &v1.CheckpointContainerRequest{ContainerId: "none", Location: dir + "/c.tar"})
	wantCode(t, err, codes.NotFound, "none")
	_, err = c.CheckpointContainer(deadline(t), &v1.CheckpointContainerRequest{ContainerId: k.id, Location: dir + "/c.tar", Timeout: -1})
	wantCode(t, err, codes.InvalidArgument, "timeout")
	created := c.create(t, k.pod, criContainer("created", "count"))
	_, err = c.CheckpointContainer(deadline(t), &v1.CheckpointContainerRequest{ContainerId: created, Location: dir + "/c.tar"})
	wantCode(t, err, codes.FailedPrecondition, "it is created")
	if _, err := criu.Open(t.Context(), "criu"); err != nil {
		wantCode(t, k.save(dir+"/c.tar"), codes.Unimplemented, "CRIU")
	}
	k.goesOn()
	n.kill()
	n.start("PATH=/usr/bin:/bin")
	if _, err := exec.LookPath("/usr/bin/criu"); err != nil {
		wantCode(t, k.save(dir+"/c.tar"), codes.Unimplemented, "install the package criu")
	}
	k.nothing(dir, "file")
	k.goesOn()
}

// What no container can be restored from is refused when it is to be created.
func TestCRIRestoreRefused(t *testing.T) {
	n := newNode(t)
	n.handlers()
	c := n.cri()
	dir := t.TempDir()
	pack := func(name, config, spec string) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := tar.NewWriter(f)
		for name, text := range map[string]string{"config.dump": config, "./spec.dump": spec} {
			if text == "" {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o600}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, text)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	const config, process = `{"id":"x","rootfsImageName":"localhost/tool:1"}`, `"process":{"args":["/bin/tool"],"cwd":"/"},"linux":{}`
	for _, tt := range []struct {
		handler, image string
		code           codes.Code
		text           string
	}{
		{"", dir + "/none.tar", codes.NotFound, "no such file"},
		{"", dir, codes.DataLoss, "it is no file"},
		{"", dir + "/fifo", codes.DataLoss, "it is no file"},
		{"", n.write(dir+"/text", strings.Repeat("text", 1000)), codes.DataLoss, "no tar archive"},
		{"", pack("empty", "", ""), codes.DataLoss, "no config.dump or no spec.dump"},
		{"", pack("json", "{", "{}"), codes.DataLoss, "config.dump"},
		{"", pack("process", config, "{}"), codes.DataLoss, "has no process"},
		{"", pack("image", "{}", "{"+process+"}"), codes.DataLoss, "does not name the image"},
		{"", pack("path", `{"rootfsImageName":"/etc/passwd"}`, "{"+process+"}"), codes.DataLoss, "does not name the image"},
		{"", pack("other", `{"rootfsImageName":"localhost/none:1"}`, "{"+process+"}"), codes.NotFound, "localhost/none:1"},
		{"", pack("tty", config, `{"process":{"terminal":true},"linux":{}}`), codes.InvalidArgument, "tty: true"},
		{"", pack("more", config, "{"+process+`,"mounts":[{"destination":"/data"}]}`), codes.InvalidArgument, "/data"},
		{"", pack("less", config, "{"+process+"}"), codes.InvalidArgument, "leave them out"},
		{"runc", pack("handler", config, "{"+process+"}"), codes.Unimplemented, "default handler"},
	} {
		c.handler = tt.handler
		pod := c.run(t, c.sandbox())
		conf := criContainer("from-archive")
		conf.Image.Image = tt.image
		_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: conf})
		wantCode(t, err, tt.code, tt.text)
		c.remove(t, pod)
	}
	c.empty(t)
}

// A container that was saved goes on as it was, and the archive has what others read of such.
func TestCRICheckpoint(t *testing.T) {
	checkpoints.NeedCRIU(t, "cri-criu")
	n := newNode(t)
	c := n.cri()
	k := c.counting(t)
	dir := t.TempDir()

	// What does not come to an end leaves nothing.
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	wantCode(t, k.save(small+"/c.tar"), codes.ResourceExhausted, "no space left")
	k.nothing(small)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := c.CheckpointContainer(ctx, &v1.CheckpointContainerRequest{ContainerId: k.id, Location: dir + "/late.tar", Timeout: 1})
	if err == nil {
		os.Remove(dir + "/late.tar") // it was fast enough
	} else {
		wantCode(t, err, codes.DeadlineExceeded, "within 1s")
	}
	k.nothing(dir)
	k.goesOn()

	location := dir + "/c.tar"
	if err := k.save(location); err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	k.nothing(dir, "c.tar")
	k.goesOn()
	wantCode(t, k.save(location), codes.AlreadyExists, "something already")
	if st, err := os.Stat(location); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	to := t.TempDir()
	files := unpack(t, location, to)
	for _, name := range []string{"checkpoint/inventory.img", "checkpoint/descriptors.json", "config.dump", "spec.dump", "status.dump", "status", "bind.mounts", "rootfs-diff.tar", "dump.log", "stats-dump", "container.log"} {
		if files[name] != 0o600 {
			t.Errorf("%s has the mode %o", name, files[name])
		}
	}
	var config struct{ ID, Name, RootfsImage, RootfsImageRef, Runtime string }
	decode(t, to+"/config.dump", &config)
	st := c.status(t, k.id)
	if config.ID != k.id || config.Name != "counter" || config.RootfsImage != "localhost/counter:1" || "sha256:"+config.RootfsImageRef != st.ImageId || config.Runtime != "default" {
		t.Errorf("config.dump: %+v", config)
	}
	var spec specs.Spec
	decode(t, to+"/spec.dump", &spec)
	if a := spec.Annotations; a["io.kubernetes.cri.container-name"] != "counter" || a["io.kubernetes.cri-o.Annotations"] != `{"io.kubernetes.container.hash":"abc"}` {
		t.Errorf("annotations of spec.dump: %v", a)
	}
	var status v1.ContainerStatus
	decode(t, to+"/status.dump", &status)
	if status.Id != k.id || status.State != v1.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status.dump: %v", &status)
	}

	// Its pod goes on, and another runtime has it back as it was.
	if _, err := c.RemoveContainer(deadline(t), &v1.RemoveContainerRequest{ContainerId: k.id}); err != nil {
		t.Fatal(err)
	}
	k.restored(to, &spec)
	k.recreated(location)
	c.remove(t, k.pod)
	k.nothing(dir, "c.tar")
}

// recreated has a container created of the archive in the pod. A daemon that dies while it starts is asked again.
func (k *counting) recreated(location string) {
	t, c, n := k.t, k.c, k.c.n
	n.kill()
	n.start("ORLOP_FAULT=pod.restore.files-made", "ORLOP_FAULT_ONCE="+t.TempDir()+"/once")
	k.conf.Image, k.conf.Metadata.Attempt = &v1.ImageSpec{Image: location}, 1
	mounts := k.conf.Mounts
	k.conf.Mounts = nil
	_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: k.pod, Config: k.conf})
	wantCode(t, err, codes.InvalidArgument, "mounts that the request has not: /tmp")
	k.conf.Mounts = mounts
	k.id = c.create(t, k.pod, k.conf)
	c.again(t, "start", func(ctx context.Context) error {
		_, err := c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: k.id})
		return err
	})
	if image := c.status(t, k.id).Image.Image; !strings.Contains(image, "counter") && !strings.HasPrefix(image, "sha256:") {
		t.Errorf("its image is %s", image)
	}
	k.log = n.root + "/containers/" + k.id + "/upper/log"
	k.pid = c.pid(t, k.id)
	k.goesOn()
	if out, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", k.pid)); err != nil || out != n.run+"/keeper/containers/"+k.id+"/stdout" {
		t.Errorf("its standard output is %s, %v", out, err)
	}
	if left, _ := filepath.Glob(n.root + "/containers/" + k.id + "/restore"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// It is a container as any other.
	if err := syscall.Kill(n.keeperPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	k.goesOn()
	if _, err := c.StopContainer(deadline(t), &v1.StopContainerRequest{ContainerId: k.id}); err != nil {
		t.Fatal(err)
	}
	// Before Linux 6.15 nobody can tell how what is not the keeper's child ended.
	if st := c.ended(t, k.id); st.ExitCode != 137 && st.ExitCode != 255 {
		t.Errorf("ended: %v", st)
	}
	if _, err := c.RemoveContainer(deadline(t), &v1.RemoveContainerRequest{ContainerId: k.id}); err != nil {
		t.Fatal(err)
	}
	if left := append(n.leftOf(), glob(n.run+"/restored/*")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func glob(pattern string) []string {
	list, _ := filepath.Glob(pattern)
	return list
}

// restored has orlop-oci restore what was saved.
func (k *counting) restored(dir string, spec *specs.Spec) {
	t := k.t
	rootfs := dir + "/rootfs"
	if err := os.MkdirAll(rootfs+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", bin+"/counter", rootfs+"/bin/counter")
	run(t, "tar", "-C", rootfs, "-xf", dir+"/rootfs-diff.tar")
	spec.Root = &specs.Root{Path: "rootfs"}
	spec.Linux.CgroupsPath = "/" + k.c.n.name + "-restored"
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	k.c.n.write(dir+"/config.json", string(raw))
	k.log = rootfs + "/log"
	n := k.lines()
	oci := func(args ...string) *exec.Cmd {
		return exec.Command(bin+"/orlop-oci", append([]string{"--root", dir + "/state"}, args...)...)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fifo := dir + "/out"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said, err := os.Create(dir + "/said")
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd := oci("--log", dir+"/said", "restore", "-d", "--bundle", dir, "--image-path", dir+"/checkpoint", "--work-path", dir+"/work", "restored")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(dir + "/said")
		log, _ := os.ReadFile(dir + "/work/restore.log")
		t.Fatalf("restore: %v\n%s\n%s", err, text, log[max(0, len(log)-3000):])
	}
	defer func() {
		if text, err := oci("delete", "--force", "restored").CombinedOutput(); err != nil {
			t.Errorf("delete: %v: %s", err, text)
		}
	}()
	if n == 0 {
		t.Error("the writable layer has no log")
	}
	if now := k.counts(); now <= n {
		t.Errorf("it was at %d, and is at %d", n, now)
	}
}

// A checkpoint whose daemon or keeper dies leaves the container running, and no half archive.
func TestCRICheckpointKilled(t *testing.T) {
	checkpoints.NeedCRIU(t, "cri-criu")
	n := newNode(t)
	c := n.cri()
	k := c.counting(t)
	dir := t.TempDir()
	location := dir + "/c.tar"
	for _, point := range []string{"intent-recorded", "processes-saved", "archive-written", "archive-named"} {
		t.Run(point, func(t *testing.T) {
			k.t, n.t = t, t
			n.kill()
			n.start("ORLOP_FAULT=pod.checkpoint."+point, "ORLOP_FAULT_ONCE="+t.TempDir()+"/once")
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			go c.CheckpointContainer(ctx, &v1.CheckpointContainerRequest{ContainerId: k.id, Location: location})
			if !n.waitExit(30 * time.Second) {
				t.Fatalf("nothing passed the point\n%s", n.tail())
			}
			cancel()
			k.counts() // also while there is no daemon
			n.revive()
			k.goesOn()
			if point == "archive-named" {
				k.nothing(dir, "c.tar")
				unpack(t, location, t.TempDir())
				os.Remove(location)
			} else {
				k.nothing(dir)
			}
		})
	}
	k.t, n.t = t, t
	done := make(chan error, 1)
	go func() { done <- k.save(location) }()
	n.eventually(20*time.Second, func() error {
		_, err := os.Stat(n.root + "/checkpoints/" + k.id + "/content/checkpoint/inventory.img")
		if err != nil && len(done) == 0 {
			return err
		}
		return nil
	})
	if err := syscall.Kill(n.keeperPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the keeper was killed: %v", err)
	}
	k.goesOn()
	k.nothing(dir, "c.tar")
	unpack(t, location, t.TempDir())
	c.remove(t, k.pod)
}

// Other runtimes save theirs by their own command. Those containers stand still from before it until the
// writable layer is read; a daemon that starts lets them go on.
func TestCRICheckpointByRuntime(t *testing.T) {
	checkpoints.NeedCRIU(t, "cri-criu")
	n := newNode(t)
	n.handlers()
	c := n.cri()
	c.handler = "own"
	k := c.counting(t)
	dir := t.TempDir()
	if err := k.save(dir + "/c.tar"); err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	k.goesOn()
	k.nothing(dir, "c.tar")
	to := t.TempDir()
	if files := unpack(t, dir+"/c.tar", to); files["checkpoint/inventory.img"] == 0 || files["rootfs-diff.tar"] == 0 || files["dump.log"] == 0 {
		t.Errorf("the archive has %v", files)
	}
	var config struct{ Runtime string }
	if decode(t, to+"/config.dump", &config); config.Runtime != "own" {
		t.Errorf("config.dump: %+v", config)
	}
	os.Remove(dir + "/c.tar")
	n.kill()
	n.start("ORLOP_FAULT=pod.checkpoint.processes-saved", "ORLOP_FAULT_ONCE="+t.TempDir()+"/once")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	go c.CheckpointContainer(ctx, &v1.CheckpointContainerRequest{ContainerId: k.id, Location: dir + "/c.tar"})
	if !n.waitExit(60 * time.Second) {
		t.Fatalf("nothing passed the point\n%s", n.tail())
	}
	cancel()
	n.revive()
	k.goesOn()
	k.nothing(dir)
	c.remove(t, k.pod)

	// runc 1.1 does not know how to save streams that are FIFOs of the host, as the keeper's are: that is its
	// error, and the container goes on.
	c.handler = "runc"
	k = c.counting(t)
	if err := k.save(dir + "/c.tar"); err == nil {
		os.Remove(dir + "/c.tar") // a later one does
	} else {
		wantCode(t, err, codes.FailedPrecondition, "/stdout")
	}
	k.goesOn()
	k.nothing(dir)
	c.remove(t, k.pod)
}

// unpack returns the modes of an archive's files.
func unpack(t *testing.T, archive, to string) map[string]int64 {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]int64{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = h.Mode
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(filepath.Join(to, h.Name), 0o755)
		} else {
			var out *os.File
			if out, err = os.Create(filepath.Join(to, h.Name)); err == nil {
				_, err = io.Copy(out, r)
				out.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, file string, into any) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		t.Errorf("%s: %v", file, err)
	}
}
