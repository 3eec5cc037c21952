package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/proc"
	"github.com/orlop-io/orlop/test/programs"
)

// asIs is a codec for bytes that need not be a message.
type asIs struct{}

func (asIs) Name() string { return "proto" }

func (asIs) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (asIs) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = asIs{}

// dial is another connection to the node's socket.
func (c *client) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+c.n.run+"/cri.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// send sends bytes as a request.
func send(t *testing.T, conn *grpc.ClientConn, method string, raw []byte) error {
	var answer []byte
	return conn.Invoke(deadline(t), method, raw, &answer, grpc.ForceCodecV2(asIs{}))
}

// memory fails the test if the daemon takes more than that at its peak, beyond what it
// has now. Under the race detector, which takes several times as much, it is told only.
func (n *node) memory(t *testing.T, mostKiB int) (check func()) {
	t.Helper()
	before := proc.KiB(t, n.daemonPID(), "smaps_rollup", "Pss")
	top := proc.Peak(n.daemonPID())
	return func() {
		t.Helper()
		grown := top() - before
		t.Logf("the daemon's memory: %d KiB, at most %d more", before, grown)
		if grown > mostKiB && !programs.Race {
			t.Errorf("the daemon's memory has grown by %d KiB, at most %d are expected", grown, mostKiB)
		}
	}
}

// Requests that nobody in his right mind sends get a clear error, take bounded memory, and
// leave nothing.
func TestCRIHostileRequests(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	c.start(t, pod, criContainer("good", "sleep"))
	before := n.count(t)
	check := n.memory(t, 100<<10)
	mega := strings.Repeat("m", 1<<20)
	deep := strings.Repeat("d/", 2000)
	for _, tt := range []struct {
		name   string
		change func(*v1.PodSandboxConfig)
		code   codes.Code
		text   string
	}{
		{"100 MB", func(s *v1.PodSandboxConfig) { s.Annotations = map[string]string{"a": strings.Repeat("x", 100<<20)} }, codes.ResourceExhausted, "larger than max"},
		{"name of 1 MB", func(s *v1.PodSandboxConfig) { s.Metadata.Name = mega }, codes.InvalidArgument, "1048576 bytes; at most 253"},
		{"namespace of 1 MB", func(s *v1.PodSandboxConfig) { s.Metadata.Namespace = mega }, codes.InvalidArgument, "at most 253"},
		{"uid of 1 MB", func(s *v1.PodSandboxConfig) { s.Metadata.Uid = mega }, codes.InvalidArgument, "at most 253"},
		{"name with a slash", func(s *v1.PodSandboxConfig) { s.Metadata.Name = "../../etc" }, codes.InvalidArgument, "not possible"},
		{"name of two lines", func(s *v1.PodSandboxConfig) { s.Metadata.Name = "one\nlevel=ERROR msg=two" }, codes.InvalidArgument, "not possible"},
		{"host name of 1 MB", func(s *v1.PodSandboxConfig) { s.Hostname = mega }, codes.InvalidArgument, "host name"},
		{"labels of 2 MB", func(s *v1.PodSandboxConfig) { s.Labels = map[string]string{"a": mega, "b": mega} }, codes.InvalidArgument, "labels and annotations"},
		{"deep log directory", func(s *v1.PodSandboxConfig) { s.LogDirectory = "/" + deep + deep }, codes.InvalidArgument, "log directory"},
		{"relative log directory", func(s *v1.PodSandboxConfig) { s.LogDirectory = "../" + deep }, codes.InvalidArgument, "log directory"},
		{"deep cgroup parent", func(s *v1.PodSandboxConfig) { s.Linux.CgroupParent = "/" + deep + deep }, codes.InvalidArgument, "cgroup parent"},
	} {
		t.Run("sandbox, "+tt.name, func(t *testing.T) {
			s := c.sandbox()
			tt.change(s)
			_, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: s})
			wantCode(t, err, tt.code, tt.text)
			if text := fmt.Sprint(err); len(text) > 5<<10 {
				t.Errorf("the error has %d bytes", len(text))
			}
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*v1.ContainerConfig)
		code   codes.Code
		text   string
	}{
		{"name of 1 MB", func(cc *v1.ContainerConfig) { cc.Metadata.Name = mega }, codes.InvalidArgument, "at most 253"},
		{"annotations of 2 MB", func(cc *v1.ContainerConfig) { cc.Annotations = map[string]string{"a": mega, "b": mega} }, codes.InvalidArgument, "labels and annotations"},
		{"deep log path", func(cc *v1.ContainerConfig) { cc.LogPath = deep + deep }, codes.InvalidArgument, "log path"},
		{"log path with a long part", func(cc *v1.ContainerConfig) { cc.LogPath = strings.Repeat("l", 256) }, codes.InvalidArgument, "at most 255"},
		{"deep mount", func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{HostPath: "/tmp", ContainerPath: "/" + deep + deep}}
		}, codes.InvalidArgument, "mount's path"},
		{"deep host path", func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{HostPath: "/" + deep + deep, ContainerPath: "/m"}}
		}, codes.InvalidArgument, "mount's host path"},
		{"deep working directory", func(cc *v1.ContainerConfig) { cc.WorkingDir = "/" + deep + deep }, codes.InvalidArgument, "working directory"},
		{"image's name of 1 MB", func(cc *v1.ContainerConfig) { cc.Image.Image = mega }, codes.InvalidArgument, ""},
		{"environment that is no text", func(cc *v1.ContainerConfig) { cc.Envs = []*v1.KeyValue{{Key: "A", Value: []byte("\xff\xfe")}} }, codes.InvalidArgument, "UTF-8"},
		{"user's name of 1 MB", func(cc *v1.ContainerConfig) { cc.Linux.SecurityContext.RunAsUsername = mega }, codes.InvalidArgument, ""},
		{"capability of 1 MB", func(cc *v1.ContainerConfig) {
			cc.Linux.SecurityContext.Capabilities = &v1.Capability{AddCapabilities: []string{mega}}
		}, codes.InvalidArgument, ""},
	} {
		t.Run("container, "+tt.name, func(t *testing.T) {
			cc := criContainer("bad")
			tt.change(cc)
			_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: cc})
			wantCode(t, err, tt.code, tt.text)
			if text := fmt.Sprint(err); len(text) > 5<<10 {
				t.Errorf("the error has %d bytes", len(text))
			}
		})
	}
	// What only the kernel can refuse ends the container, and says so.
	for _, tt := range []struct {
		name   string
		change func(*v1.ContainerConfig)
	}{
		{"a variable of 1 MB", func(cc *v1.ContainerConfig) { cc.Envs = []*v1.KeyValue{{Key: "A", Value: []byte(mega)}} }},
		{"arguments of 3 MB", func(cc *v1.ContainerConfig) {
			for range 30 {
				cc.Args = append(cc.Args, strings.Repeat("a", 100<<10))
			}
		}},
	} {
		t.Run("start, "+tt.name, func(t *testing.T) {
			cc := criContainer(strings.ReplaceAll(tt.name, " ", "-"), "sleep")
			tt.change(cc)
			id := c.create(t, pod, cc)
			_, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id})
			if err == nil || !strings.Contains(err.Error(), "argument list too long") || len(err.Error()) > 4<<10 {
				t.Errorf("got %.300v", err)
			}
			if _, err := c.RemoveContainer(deadline(t), &v1.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
		})
	}
	conn := c.dial(t)
	t.Run("not UTF-8", func(t *testing.T) {
		s := c.sandbox()
		s.Metadata.Name = "XYZ"
		raw, err := proto.Marshal(&v1.RunPodSandboxRequest{Config: s})
		if err != nil {
			t.Fatal(err)
		}
		err = send(t, conn, v1.RuntimeService_RunPodSandbox_FullMethodName, bytes.ReplaceAll(raw, []byte("XYZ"), []byte("X\xff\xfe")))
		wantCode(t, err, codes.Internal, "invalid UTF-8")
	})
	t.Run("no message", func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(3, 4))
		for _, d := range []grpc.ServiceDesc{v1.RuntimeService_ServiceDesc, v1.ImageService_ServiceDesc} {
			for _, m := range d.Methods {
				for range 20 {
					raw := make([]byte, rnd.IntN(200)+1)
					for i := range raw {
						raw[i] = byte(rnd.Uint32())
					}
					err := send(t, conn, "/"+d.ServiceName+"/"+m.MethodName, raw)
					if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded || err != nil && strings.Contains(err.Error(), "fault of the runtime") {
						t.Fatalf("%s of %x: %v\n%s", m.MethodName, raw, err, n.tail())
					}
				}
			}
		}
		wantCode(t, send(t, conn, "/runtime.v1.RuntimeService/Nothing", nil), codes.Unimplemented, "Nothing")
	})
	t.Run("no protocol", func(t *testing.T) {
		for i, what := range []string{"", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", strings.Repeat("\x00", 1<<16), strings.Repeat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1000)} {
			for range 40 {
				conn, err := net.Dial("unix", n.run+"/cri.sock")
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				conn.Write([]byte(what)) // may be cut off
				if i%2 == 0 {
					conn.Close()
				} else {
					defer conn.Close()
				}
			}
		}
		if _, err := c.Status(deadline(t), &v1.StatusRequest{}); err != nil {
			t.Errorf("the socket beside them: %v", err)
		}
	})
	conn.Close()
	check()
	n.eventually(60*time.Second, func() error {
		if l := n.count(t).leaks(before); len(l) > 0 {
			return fmt.Errorf("left: %v", l)
		}
		return nil
	})
	c.remove(t, pod)
	c.empty(t)
}

// A log is written by root. Wherever a pod that can write to the log directory leads it,
// it is not followed out of there.
func TestCRILogsStayBelow(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	n.write(victim, "precious\n")
	untouched := func(t *testing.T) {
		t.Helper()
		raw, err := os.ReadFile(victim)
		ents, derr := os.ReadDir(outside)
		if err != nil || string(raw) != "precious\n" || derr != nil || len(ents) != 1 {
			t.Errorf("outside of the log directory: %q %v, %v %v", raw, err, ents, derr)
		}
	}
	conf := c.sandbox()
	pod := c.run(t, conf)
	for name, path := range map[string]string{
		"up": "../../x/0.log", "up-inside": "a/../../../0.log", "absolute": victim, "itself": "..", "zero": "a\x00b",
	} {
		t.Run(name, func(t *testing.T) {
			cc := criContainer(name, "echo", "text")
			cc.LogPath = path
			_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: cc})
			wantCode(t, err, codes.InvalidArgument, "log path")
		})
	}
	for name, make := range map[string]func(dir string) error{
		"link-dir":     func(dir string) error { return os.Symlink(outside, dir) },
		"link-dir-rel": func(dir string) error { return os.Symlink("../../"+strings.Repeat("../", 20)+outside, dir) },
		"link-file": func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return os.Symlink(victim, filepath.Join(dir, "0.log"))
		},
		"link-new-file": func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(outside, "new"), filepath.Join(dir, "0.log"))
		},
		"directory": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "0.log"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(conf.LogDirectory, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := make(filepath.Join(conf.LogDirectory, name)); err != nil {
				t.Fatal(err)
			}
			id := c.create(t, pod, criContainer(name, "count"))
			_, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id})
			wantCode(t, err, codes.InvalidArgument, "log path")
			untouched(t)
		})
	}
	t.Run("while it runs", func(t *testing.T) {
		id := c.start(t, pod, criContainer("later", "count"))
		dir := filepath.Join(conf.LogDirectory, "later")
		n.eventually(10*time.Second, func() error { _, err := os.Stat(filepath.Join(dir, "0.log")); return err })
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReopenContainerLog(deadline(t), &v1.ReopenContainerLogRequest{ContainerId: id}); err == nil {
			t.Error("a log was opened anew where it is not to be")
		}
		time.Sleep(300 * time.Millisecond) // it goes on writing lines
		untouched(t)
		// It is right again: the log goes on.
		os.Remove(dir)
		if _, err := c.ReopenContainerLog(deadline(t), &v1.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		n.eventually(10*time.Second, func() error {
			raw, err := os.ReadFile(filepath.Join(dir, "0.log"))
			if err == nil && !bytes.Contains(raw, []byte("count")) {
				err = fmt.Errorf("%q", raw)
			}
			return err
		})
	})
	untouched(t)
	c.remove(t, pod)
	c.empty(t)
}

// Output without end is kept up to what an answer may have, which says so, however many
// commands write at a time.
func TestCRIEndlessOutput(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	id := c.start(t, pod, criContainer("one", "sleep"))
	check := n.memory(t, 300<<10)
	x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "write", "100000000"}})
	if err != nil || len(x.Stdout) < 15<<20 || len(x.Stdout)+len(x.Stderr) > 16<<20 || !strings.Contains(string(x.Stderr), "more bytes of output were dropped") {
		t.Errorf("100 MB of output: %d kept, %.200q, %v", len(x.GetStdout()), x.GetStderr(), err)
	}
	if err := workers(16, 16, func(i int) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		x, err := c.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "write", "30000000"}})
		if err != nil {
			return err
		}
		if len(x.Stdout) < 16<<10 || x.ExitCode != 0 || !strings.Contains(string(x.Stderr), "more bytes of output were dropped") {
			return fmt.Errorf("%d bytes kept of 30 MB, exit code %d, %.200q", len(x.Stdout), x.ExitCode, x.Stderr)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	_, err = c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "write", "1000000000000"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded, "timed out after 1 s")
	// What a command has started goes with it.
	_, err = c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "family"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded, "timed out after 1 s")
	check()
	n.eventually(10*time.Second, func() error {
		if p := c.processes(t, pod, id); p != 1 {
			return fmt.Errorf("%d processes are left", p)
		}
		return nil
	})
	if x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "write", "10000000"}}); err != nil || len(x.Stdout) != 10_000_000 || len(x.Stderr) != 0 {
		t.Errorf("10 MB afterwards: %d kept, %.200q, %v", len(x.GetStdout()), x.GetStderr(), err)
	}
	c.remove(t, pod)
}

// User databases of 100 MB in an image are refused before they are read.
func TestCRIHugeUserDatabase(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	tool, err := os.ReadFile(bin + "/tool")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"passwd", "group"} {
		dir := t.TempDir()
		for _, d := range []string{"bin", "etc"} {
			if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(dir+"/bin/tool", tool, 0o755); err != nil {
			t.Fatal(err)
		}
		n.write(dir+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home:/bin/sh\n")
		n.write(dir+"/etc/"+file, strings.Repeat("somebody:x:1000:1000::/home:/bin/sh\n", (100<<20)/36))
		n.orlop("image", "pack", dir, "-t", "localhost/huge-"+file+":1", "--entrypoint", "/bin/tool")
	}
	pod := c.run(t, c.sandbox())
	check := n.memory(t, 64<<10)
	for _, file := range []string{"passwd", "group"} {
		for name, change := range map[string]func(*v1.LinuxContainerSecurityContext){
			"name":   func(s *v1.LinuxContainerSecurityContext) { s.RunAsUsername = "somebody" },
			"number": func(s *v1.LinuxContainerSecurityContext) { s.RunAsUser = &v1.Int64Value{Value: 1000} },
		} {
			t.Run(file+" by "+name, func(t *testing.T) {
				cc := criContainer(file+"-"+name, "sleep")
				cc.Image.Image = "localhost/huge-" + file + ":1"
				change(cc.Linux.SecurityContext)
				_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: cc})
				wantCode(t, err, codes.InvalidArgument, "/etc/"+file+" is larger than")
			})
		}
	}
	check()
	c.remove(t, pod)
	c.empty(t)
}

// Annotations that mean something to other runtimes, or look as if they could be paths, mean
// nothing here: they are told as they were given, and the host is as it was.
func TestCRIAnnotationsStayInside(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	mark := filepath.Join(t.TempDir(), "made")
	hook := fmt.Sprintf(`{"prestart":[{"path":"/bin/touch","args":["touch",%q]}]}`, mark)
	annotations := map[string]string{
		"run.oci.hooks.stdin": hook, "run.oci.hooks": hook, "org.opencontainers.hooks": hook, "io.katacontainers.config.hypervisor.path": "/bin/touch",
		"org.systemd.property.ExecStopPost": "['/bin/touch', '" + mark + "']", "run.oci.systemd.subgroup": "../../escape", "run.oci.keep_original_groups": "1",
		"io.kubernetes.cri-o.Devices": "/dev/kmsg:/dev/kmsg:rwm", "io.kubernetes.cri-o.UnifiedCgroup.one": "memory.max=1", "io.kubernetes.cri-o.umask": "000",
		"io.containerd.runc.v2.group": "../../escape", "io.kubernetes.cri.sandbox-log-directory": "/etc", "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
		"container.apparmor.security.beta.kubernetes.io/one": "unconfined", "io.podman.annotations.privileged": "TRUE", "org.criu.config": mark,
		"../../../../tmp/escape": "../../../../tmp/escape", "a\nb": "c\x00d\n$(touch " + mark + ")", "": "empty",
	}
	conf := c.sandbox()
	conf.Annotations = annotations
	pod := c.run(t, conf)
	cc := criContainer("one", "look", "env", "stat:/dev/kmsg", "/proc/self/status")
	cc.Annotations = annotations
	id := c.start(t, pod, cc)
	st := c.ended(t, id)
	if st.ExitCode != 0 || len(st.Annotations) != len(annotations) || st.Annotations["a\nb"] != annotations["a\nb"] {
		t.Errorf("the container: %v", st)
	}
	var log string
	n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(st.LogPath)
		if log = string(raw); err == nil && !strings.Contains(log, "end of look") {
			err = fmt.Errorf("log: %s", log)
		}
		return err
	})
	if strings.Contains(log, "found /dev/kmsg") || strings.Contains(log, "escape") || !strings.Contains(log, "Seccomp:\t2") || !strings.Contains(log, "Umask:\t0022") {
		t.Errorf("the container sees\n%s", log)
	}
	for _, path := range []string{mark, "/tmp/escape", "/sys/fs/cgroup/memory/escape", "/sys/fs/cgroup/escape"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	c.remove(t, pod)
	c.empty(t)
}
