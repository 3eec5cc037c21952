package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
)

// orlop is this tree's daemon, through its control socket.
type orlop struct {
	instance  string // names what it makes, and its group
	block     byte   // second byte of its pods' addresses
	bin, dir  string
	registry  registry
	group     group
	manifests orlopv1connect.ManifestsClient
	pods      orlopv1connect.PodsClient
	images    orlopv1connect.ImagesClient

	mu      sync.Mutex
	started map[string]chan struct{} // by pod, guarded by mu
}

func (o *orlop) run() string { return "/run/" + o.instance }

const orlopConfig = `instance: %s
root: %s/root
run: %s
cgroup: {parent: %s}
metrics: {listen: "off"}
log: {level: warn}
network: {ipv4Block: 10.%[5]d.0.0/16, ipv6Block: "fd6f:726c:%[5]x::/64"}
volume: {poolSizeBytes: 1073741824, reserveBytes: 0}
`

func (o *orlop) Name() string             { return o.instance }
func (o *orlop) Version() (string, error) { return version(o.bin+"/orlop", "--version") }
func (o *orlop) Group() group             { return o.group }

func (o *orlop) Start(ctx context.Context) (err error) {
	o.started = make(map[string]chan struct{})
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	if o.group, err = newGroup(o.instance); err != nil {
		return err
	}
	config := fmt.Sprintf(orlopConfig, o.instance, o.dir, o.run(), o.group.pods(), o.block)
	if err := os.WriteFile(o.dir+"/config.yaml", []byte(config), 0o600); err != nil {
		return err
	}
	log := o.dir + "/daemon.log"
	if _, err = o.group.spawn(log, o.bin+"/orlop", "daemon", "--config", o.dir+"/config.yaml"); err != nil {
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
	err = until(ctx, func() error {
		_, err := o.pods.List(ctx, connect.NewRequest(&orlopv1.ListPodsRequest{}))
		return err
	})
	if err != nil {
		return withLog(err, log)
	}
	events, err := o.pods.Events(ctx, connect.NewRequest(&orlopv1.EventsRequest{Watch: true}))
	if err != nil {
		return err
	}
	go func() {
		for events.Receive() {
			e := events.Msg()
			o.mu.Lock()
			if ch := o.started[e.Pod]; ch != nil && e.Reason == "Started" {
				close(ch)
				delete(o.started, e.Pod)
			}
			o.mu.Unlock()
		}
	}()
	return nil
}

const orlopPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: bench}
spec:
  containers:
  - name: idle
    image: %s
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
		Files: []*orlopv1.File{{Name: "pod.yaml", Content: fmt.Appendf(nil, orlopPod, name, o.registry.idle())}},
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
