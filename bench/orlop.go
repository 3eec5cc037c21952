package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// orlop is this tree's daemon, on directories and an instance of its own, through its
// control socket.
type orlop struct {
	dir, registry string
	group         string
	leave         func()
	cmd           *exec.Cmd
	manifests     orlopv1connect.ManifestsClient
	pods          orlopv1connect.PodsClient
	images        orlopv1connect.ImagesClient
	stop          context.CancelFunc

	mu      sync.Mutex
	started map[string]chan struct{} // by pod, guarded by mu
}

func (o *orlop) Name() string  { return "orlop" }
func (o *orlop) Group() string { return o.group }

// run is short, since a socket's path must be.
func (o *orlop) run() string { return "/run/orlbench" }

func (o *orlop) Start(ctx context.Context) error {
	o.started = make(map[string]chan struct{})
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	config := fmt.Sprintf(`instance: orlbench
root: %s/root
run: %s
metrics: {listen: "off"}
log: {level: warn}
network: {ipv4Block: 10.232.0.0/16, ipv6Block: "fd6f:726c:6265::/64"}
volume: {poolSizeBytes: 1073741824, reserveBytes: 0}
`, o.dir, o.run())
	if err := os.WriteFile(o.dir+"/config.yaml", []byte(config), 0o600); err != nil {
		return err
	}
	group, enter, leave, err := measureGroup("orlbench-orlop")
	if err != nil {
		return err
	}
	o.group, o.leave = group, leave
	if o.cmd, err = spawn(enter, o.dir+"/daemon.log", binary("orlop"), "daemon", "--config", o.dir+"/config.yaml"); err != nil {
		return err
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	h := &http.Client{Transport: &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", o.run()+"/orlop.sock")
	}}}
	o.manifests = orlopv1connect.NewManifestsClient(h, "http://orlop", connect.WithGRPC())
	o.pods = orlopv1connect.NewPodsClient(h, "http://orlop", connect.WithGRPC())
	o.images = orlopv1connect.NewImagesClient(h, "http://orlop", connect.WithGRPC())
	if err := until(ctx, func() error {
		_, err := o.pods.List(ctx, connect.NewRequest(&orlopv1.ListPodsRequest{}))
		return err
	}); err != nil {
		return err
	}
	if err := o.Pull(ctx, o.registry+"/bench/idle:1"); err != nil {
		return err
	}
	wctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	events, err := o.pods.Events(wctx, connect.NewRequest(&orlopv1.EventsRequest{Watch: true}))
	if err != nil {
		return err
	}
	go func() {
		for events.Receive() {
			if e := events.Msg(); e.Reason == "Started" {
				o.mu.Lock()
				if ch := o.started[e.Pod]; ch != nil {
					close(ch)
					delete(o.started, e.Pod)
				}
				o.mu.Unlock()
			}
		}
	}()
	return nil
}

func (o *orlop) Stop() {
	if o.stop != nil {
		o.stop()
	}
	if o.cmd != nil {
		if _, err := run(context.Background(), binary("orlop"), "system", "teardown", "--purge", "--config", o.dir+"/config.yaml"); err != nil {
			say("%v", err)
		}
		o.cmd.Process.Signal(syscall.SIGTERM)
		o.cmd.Wait()
	}
	os.Rename(o.dir+"/keeper.log", "/tmp/keeper-saved.log")
	os.RemoveAll(o.dir)
	if o.leave != nil {
		o.leave()
	}
}

const orlopPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: bench}
spec:
  containers:
  - name: idle
    image: %s/bench/idle:1
    imagePullPolicy: IfNotPresent
    resources: {limits: {memory: 64Mi}, requests: {cpu: 100m}}
    securityContext: {seccompProfile: {type: RuntimeDefault}}
`

func (o *orlop) StartPod(ctx context.Context, name string) error {
	started := make(chan struct{})
	o.mu.Lock()
	o.started[name] = started
	o.mu.Unlock()
	resp, err := o.manifests.Apply(ctx, connect.NewRequest(&orlopv1.ApplyRequest{
		Files: []*orlopv1.File{{Name: "pod.yaml", Content: fmt.Appendf(nil, orlopPod, name, o.registry)}},
	}))
	if err != nil {
		return err
	}
	if m := resp.Msg.Results[0].Message; m != "" {
		return fmt.Errorf("apply: %s", m)
	}
	select {
	case <-started:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("it does not start")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *orlop) RemovePod(ctx context.Context, name string) error {
	resp, err := o.manifests.Delete(ctx, connect.NewRequest(&orlopv1.DeleteRequest{
		Refs: []*orlopv1.Ref{{Kind: "Pod", Namespace: "bench", Name: name}}, Grace: durationpb.New(0),
	}))
	if err != nil {
		return err
	}
	if m := resp.Msg.Results[0].Message; m != "" {
		return fmt.Errorf("delete: %s", m)
	}
	return nil
}

func (o *orlop) Pull(ctx context.Context, ref string) error {
	s, err := o.images.Pull(ctx, connect.NewRequest(&orlopv1.PullImageRequest{Image: ref}))
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
	}
	return s.Err()
}

func (o *orlop) Drop(ctx context.Context, ref string) error {
	_, err := o.images.Remove(ctx, connect.NewRequest(&orlopv1.RemoveImageRequest{Image: ref}))
	return err
}

func (o *orlop) Own(pid int, cmdline string) bool {
	return pid == o.cmd.Process.Pid || strings.Contains(cmdline, "orlop-keeper") && strings.Contains(cmdline, o.run()+"/")
}

// binary is one of this tree's, as make build leaves it.
func binary(name string) string {
	p, err := filepath.Abs("bin/" + name)
	if err != nil {
		return name
	}
	return p
}

// orlopStarter runs single containers through a keeper, as the daemon does.
type orlopStarter struct {
	dir, root string
	group     string
	leave     func()
	cmd       *exec.Cmd
	client    *keeper.Client
}

func (o *orlopStarter) Name() string  { return "orlop" }
func (o *orlopStarter) Group() string { return o.group }

func (o *orlopStarter) Start(ctx context.Context) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	group, enter, leave, err := measureGroup("orlbench-keeper")
	if err != nil {
		return err
	}
	o.group, o.leave = group, leave
	if o.cmd, err = spawn(enter, o.dir+"/keeper.log", binary("orlop-keeper"), "-dir", o.dir+"/keeper", "-init", binary("orlop-init")); err != nil {
		return err
	}
	return until(ctx, func() (err error) {
		o.client, err = keeper.Dial(ctx, keeper.Socket(o.dir+"/keeper"), nil)
		return err
	})
}

func (o *orlopStarter) Stop() {
	if o.client != nil {
		if err := o.client.Shutdown(context.Background()); err != nil {
			say("shut the keeper down: %v", err)
			o.cmd.Process.Kill()
		}
		o.cmd.Wait()
	}
	os.Rename(o.dir+"/keeper.log", "/tmp/keeper-saved.log")
	os.RemoveAll(o.dir)
	if o.leave != nil {
		o.leave()
	}
	for _, h := range []string{"memory", "cpu", "cpuacct", "pids", "unified"} {
		removeGroups("/sys/fs/cgroup/" + h + "/orlbench-keeper")
	}
}

func (o *orlopStarter) Run(ctx context.Context, id string) (started, whole time.Duration, err error) {
	bundle := filepath.Join(o.dir, id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(bundle, d), 0o700); err != nil {
			return 0, 0, err
		}
	}
	defer os.RemoveAll(bundle)
	spec := keeper.Spec{
		ID: id, OCI: trueSpec("", "/"), Cgroup: o.group + "/" + id,
		Rootfs: executor.Rootfs{Lower: []string{o.root}, Upper: bundle + "/upper", Work: bundle + "/work"},
		Log:    keeper.LogConfig{Path: bundle + "/log", MaxBytes: 1 << 20, MaxFiles: 2},
	}
	begin := time.Now()
	if _, err := o.client.Run(ctx, spec); err != nil {
		return 0, 0, err
	}
	started = time.Since(begin)
	if _, err := o.client.Wait(ctx, id); err != nil {
		return 0, 0, err
	}
	err = o.client.Delete(ctx, id)
	return started, time.Since(begin), err
}
