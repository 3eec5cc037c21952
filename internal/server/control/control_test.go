package control

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/volume"
)

// daemon serves the API on a unix socket with a real image store, real volumes and
// pods that only keep records: running pods are tested end to end (test/e2e).
type daemon struct {
	t      *testing.T
	socket string
	server *http.Server
	ready  chan struct{}
	pods   *records

	http      *http.Client // HTTP/2
	manifests orlopv1connect.ManifestsClient
	podsAPI   orlopv1connect.PodsClient
	images    orlopv1connect.ImagesClient
	volumes   orlopv1connect.VolumesClient
	configs   orlopv1connect.ConfigsClient
	system    orlopv1connect.SystemClient
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("volumes and image layers need root: run the tests as root (make test)")
	}
	root, run := t.TempDir(), t.TempDir()
	d := &daemon{t: t, socket: filepath.Join(run, "orlop.sock"), ready: make(chan struct{}), pods: newRecords()}
	open := func(path string, kind store.Durability) *store.DB {
		db, err := store.Open(path, kind)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	durable, volatile := open(filepath.Join(root, "state.db"), store.Durable), open(filepath.Join(run, "state.db"), store.Volatile)
	ctx := context.Background()
	images, err := image.Open(ctx, image.Options{Root: root, DB: durable, Config: config.Default().Image})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	volumes, err := volume.Open(ctx, volume.Options{Root: root, Run: run, DB: durable, Volatile: volatile, PoolSizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(volumes.Teardown(ctx), volumes.Purge(ctx), volumes.Close()); err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(New(Options{
		Pods: d.pods, Images: images, Volumes: volumes, Ready: d.ready,
		Facts:    Facts{Version: "test", Root: root, Run: run, Warnings: []string{"a warning"}, Logs: root, Containers: filepath.Join(root, "none")},
		Fallback: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fallback "+r.URL.Path) }),
	}))
	d.server = server
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	d.http = &http.Client{Transport: &http.Transport{Protocols: protocols, DialContext: d.dial}}
	t.Cleanup(d.http.CloseIdleConnections)
	const url = "http://orlop"
	d.manifests = orlopv1connect.NewManifestsClient(d.http, url, connect.WithGRPC())
	d.podsAPI = orlopv1connect.NewPodsClient(d.http, url, connect.WithGRPC())
	d.images = orlopv1connect.NewImagesClient(d.http, url)
	d.volumes = orlopv1connect.NewVolumesClient(d.http, url)
	d.configs = orlopv1connect.NewConfigsClient(d.http, url, connect.WithProtoJSON())
	d.system = orlopv1connect.NewSystemClient(d.http, url)
	return d
}

func (d *daemon) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", d.socket)
}

// post is what curl does: JSON over HTTP/1.1.
func (d *daemon) post(procedure, body string) (int, string) {
	d.t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: d.dial, DisableKeepAlives: true}}
	resp, err := c.Post("http://orlop/orlop.v1."+procedure, "application/json", strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// kind returns the kind that an error's detail names.
func kind(t *testing.T, err error) string {
	t.Helper()
	return info(t, err).GetKind()
}

func info(t *testing.T, err error) *orlopv1.ErrorInfo {
	t.Helper()
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		t.Fatalf("%v is no error of the protocol", err)
	}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if i, ok := v.(*orlopv1.ErrorInfo); ok {
				return i
			}
		}
	}
	t.Fatalf("%v has no detail", err)
	return nil
}

// records are pods that never run. Methods that need a running container fail.
type records struct {
	Pods
	list    map[pod.Key]pod.Pod
	configs map[string]pod.Config
	calls   []string
	block   chan struct{} // Delete of a pod waits for it
	entered chan string   // gets the name of each pod whose Delete began
	broken  error         // List's
}

func newRecords() *records {
	return &records{list: map[pod.Key]pod.Pod{}, configs: map[string]pod.Config{}}
}

func (r *records) Apply(_ context.Context, s pod.Spec) (pod.Change, error) {
	r.calls = append(r.calls, "pod "+s.Name)
	if s.Labels["refuse"] != "" {
		return "", errs.New(errs.InUse, "host port is taken")
	}
	_, there := r.list[s.Key]
	r.list[s.Key] = pod.Pod{ID: pod.ID("id-of-" + s.Name), Spec: s, Phase: pod.Pending, CreatedAt: time.Now()}
	if there {
		return pod.ChangeUpdated, nil
	}
	return pod.ChangeCreated, nil
}

func (r *records) Delete(ctx context.Context, k pod.Key, o pod.DeleteOptions) error {
	if _, ok := r.list[k]; !ok {
		return errs.New(errs.NotFound, "pod %s does not exist", k)
	}
	if r.block != nil {
		r.entered <- k.Name
		select {
		case <-r.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (r *records) Get(_ context.Context, k pod.Key) (pod.Pod, error) {
	p, ok := r.list[k]
	if !ok {
		return p, errs.New(errs.NotFound, "pod %s does not exist", k)
	}
	return p, nil
}

func (r *records) List(context.Context) (all []pod.Pod, err error) {
	for _, p := range r.list {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b pod.Pod) int { return cmp.Compare(a.Spec.Key.String(), b.Spec.Key.String()) })
	return all, r.broken
}

func configID(secret bool, namespace, name string) string {
	if secret {
		return "secret/" + namespace + "/" + name
	}
	return "configmap/" + namespace + "/" + name
}

func (r *records) ApplyConfig(_ context.Context, c pod.Config) (pod.Change, error) {
	id := configID(c.Secret, c.Namespace, c.Name)
	r.calls = append(r.calls, id)
	r.configs[id] = c
	return pod.ChangeCreated, nil
}

func (r *records) DeleteConfig(_ context.Context, secret bool, namespace, name string) error {
	id := configID(secret, namespace, name)
	if _, ok := r.configs[id]; !ok {
		return errs.New(errs.NotFound, "%s does not exist", id)
	}
	delete(r.configs, id)
	return nil
}

func (r *records) Config(_ context.Context, secret bool, namespace, name string) (pod.Config, error) {
	c, ok := r.configs[configID(secret, namespace, name)]
	if !ok {
		return c, errs.New(errs.NotFound, "it does not exist")
	}
	return c, nil
}

func (r *records) Configs(_ context.Context, secret bool) (all []pod.Config, err error) {
	for _, c := range r.configs {
		if c.Secret == secret {
			all = append(all, c)
		}
	}
	return all, nil
}

func (r *records) Events(ctx context.Context, _ pod.EventFilter, fn func(pod.Event) error) error {
	if err := fn(pod.Event{Reason: "First"}); err != nil {
		return err
	}
	r.entered <- "events"
	<-ctx.Done()
	return nil
}

func (r *records) UsedImages() map[string]bool { return map[string]bool{} }

const app = `
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {tier: web}}
spec: {containers: [{name: c, image: "localhost/a:1"}], volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: not for everybody}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: b}
`

func apply(text string) *connect.Request[orlopv1.ApplyRequest] {
	return connect.NewRequest(&orlopv1.ApplyRequest{Files: []*orlopv1.File{{Name: "app.yaml", Content: []byte(text)}}})
}

func changes(rs []*orlopv1.ObjectResult) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Ref.Kind+" "+cmp.Or(r.Change, r.ErrorKind))
	}
	return strings.Join(out, ", ")
}

func TestApplyAndDelete(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	ctx := context.Background()
	dry := apply(app)
	dry.Msg.DryRun = true
	if r, err := d.manifests.Apply(ctx, dry); err != nil || changes(r.Msg.Results) != "ConfigMap valid, Secret valid, PersistentVolumeClaim valid, Pod valid" || len(d.pods.calls) > 0 {
		t.Fatalf("dry run: %v, %v, calls %v", r, err, d.pods.calls)
	}
	r, err := d.manifests.Apply(ctx, apply(app))
	if err != nil {
		t.Fatal(err)
	}
	// What a pod needs comes before it.
	if got, want := changes(r.Msg.Results), "ConfigMap created, Secret created, PersistentVolumeClaim created, Pod created"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	if r := r.Msg.Results[3]; r.File != "app.yaml" || r.Line != 2 || r.Ref.Namespace != "default" {
		t.Errorf("result %v", r)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"", "", "PersistentVolumeClaim unchanged"},
		{"storage: 32Mi", "storage: 48Mi", "PersistentVolumeClaim configured"},
		{"storage: 32Mi", "storage: 17Mi", "PersistentVolumeClaim invalid"},
		{"tier: web", "refuse: me", "Pod in use"},
	} {
		r, err := d.manifests.Apply(ctx, apply(strings.Replace(app, tt.from, tt.to, 1)))
		if err != nil || !strings.Contains(changes(r.Msg.Results), tt.want) {
			t.Errorf("%s to %s: %v, %v", tt.from, tt.to, r, err)
		}
	}
	// Anything wrong anywhere: nothing is done, and everything is said.
	calls := len(d.pods.calls)
	_, err = d.manifests.Apply(ctx, apply(strings.Replace(strings.Replace(app, "data: {a: b}", "data: {a: 1}", 1), "containers:", "contaners:", 1)))
	if i := info(t, err); connect.CodeOf(err) != connect.CodeInvalidArgument || i.Kind != "invalid" || len(i.Problems) != 3 || i.Problems[0].Line != 5 || i.Problems[0].Path != "spec.containers" {
		t.Errorf("%v: %v", err, i)
	}
	if len(d.pods.calls) != calls {
		t.Error("something was applied beside an error")
	}

	// Deletion goes the other way; one that fails does not keep back the others.
	files := []*orlopv1.File{{Name: "app.yaml", Content: []byte(app)}}
	del, err := d.manifests.Delete(ctx, connect.NewRequest(&orlopv1.DeleteRequest{Files: files, Refs: []*orlopv1.Ref{{Kind: "Pod", Name: "other"}}}))
	if err != nil || changes(del.Msg.Results) != "Pod not found, Pod deleted, PersistentVolumeClaim deleted, Secret deleted, ConfigMap deleted" {
		t.Errorf("%v, %v", del, err)
	}
	delete(d.pods.list, pod.Key{Namespace: "default", Name: "app"})
	del, err = d.manifests.Delete(ctx, connect.NewRequest(&orlopv1.DeleteRequest{Files: files, IgnoreMissing: true}))
	if err != nil || changes(del.Msg.Results) != "Pod unchanged, PersistentVolumeClaim unchanged, Secret unchanged, ConfigMap unchanged" {
		t.Errorf("%v, %v", del, err)
	}
	for _, bad := range []*orlopv1.DeleteRequest{
		{}, {Refs: []*orlopv1.Ref{{Kind: "Pod"}}}, {Refs: []*orlopv1.Ref{{Kind: "Node", Name: "a"}}},
		{Refs: []*orlopv1.Ref{{Kind: "Pod", Name: "a"}}, Grace: durationpb.New(-time.Second)},
	} {
		if _, err := d.manifests.Delete(ctx, connect.NewRequest(bad)); kind(t, err) != "invalid" {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// Pods stop at the same time, not one after another.
func TestDeleteTogether(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	d.pods.block, d.pods.entered = make(chan struct{}), make(chan string)
	req := &orlopv1.DeleteRequest{}
	for _, name := range []string{"a", "b", "c"} {
		k := pod.Key{Namespace: "default", Name: name}
		d.pods.list[k] = pod.Pod{Spec: pod.Spec{Key: k}}
		req.Refs = append(req.Refs, &orlopv1.Ref{Kind: "Pod", Name: name})
	}
	done := make(chan error, 1)
	go func() {
		_, err := d.manifests.Delete(context.Background(), connect.NewRequest(req))
		done <- err
	}()
	for range 3 {
		select {
		case <-d.pods.entered:
		case <-time.After(10 * time.Second):
			t.Fatal("the pods are deleted one after another")
		}
	}
	close(d.pods.block)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A claim in use names its pods, not their ids.
func TestClaimInUse(t *testing.T) {
	d := newDaemon(t)
	s := &server{o: Options{Pods: d.pods}}
	d.pods.Apply(context.Background(), pod.Spec{Key: pod.Key{Namespace: "default", Name: "app"}})
	err := s.named(context.Background(), errs.New(errs.InUse, "claim default/data is used by id-of-app"))
	if errs.KindOf(err) != errs.InUse || err.Error() != "claim default/data is used by default/app" {
		t.Error(err)
	}
}

// Every kind of error arrives as itself, and with the right code.
func TestErrors(t *testing.T) {
	seen := map[*errs.Kind]bool{}
	for kind, code := range codes {
		err := encodeError(errs.New(kind, "do %s", "this"))
		if connect.CodeOf(err) != code || info(t, err).Kind != kind.Error() || errs.ParseKind(info(t, err).Kind) != kind {
			t.Errorf("%v became %v", kind, err)
		}
		seen[kind] = true
	}
	if len(seen) != 14 {
		t.Errorf("%d kinds have codes", len(seen))
	}
	if err := encodeError(context.DeadlineExceeded); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Error(err)
	}
}

// curl works: JSON over HTTP/1.1, errors with their detail in words.
func TestPlainJSON(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	code, text := d.post("Manifests/Apply", `{"files":[{"name":"a","content":"a2luZDogUG9kCg=="}]}`)
	if code != http.StatusBadRequest || !strings.Contains(text, `"kind":"invalid"`) || !strings.Contains(text, "apiVersion and kind must be given") {
		t.Errorf("%d %s", code, text)
	}
	if code, text = d.post("Pods/List", `{}`); code != http.StatusOK || text != "{}" {
		t.Errorf("%d %s", code, text)
	}
	if code, text = d.post("Pods/Get", `{"name":"nobody"}`); code != http.StatusNotFound || !strings.Contains(text, "pod default/nobody does not exist") {
		t.Errorf("%d %s", code, text)
	}
	if code, text = d.post("System/Info", `{}`); code != http.StatusOK || !strings.Contains(text, "a warning") {
		t.Errorf("%d %s", code, text)
	}
	c := http.Client{Transport: &http.Transport{DialContext: d.dial, DisableKeepAlives: true}}
	resp, err := c.Get("http://orlop/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); string(text) != "fallback /metrics" {
		t.Errorf("%s", text)
	}
}

// Until the daemon is ready, requests wait; Info says so.
func TestReady(t *testing.T) {
	d := newDaemon(t)
	ctx := context.Background()
	i, err := d.system.Info(ctx, connect.NewRequest(&orlopv1.InfoRequest{}))
	if err != nil || i.Msg.Ready || i.Msg.NotReady == "" {
		t.Fatalf("%v, %v", i, err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := d.podsAPI.List(short, connect.NewRequest(&orlopv1.ListPodsRequest{})); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a request did not wait: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := d.podsAPI.List(ctx, connect.NewRequest(&orlopv1.ListPodsRequest{}))
		done <- err
	}()
	close(d.ready)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if i, err = d.system.Info(ctx, connect.NewRequest(&orlopv1.InfoRequest{})); err != nil || !i.Msg.Ready {
		t.Errorf("%v, %v", i, err)
	}
}

// A fault in one request is that request's: the daemon answers the next.
func TestPanic(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	// Logs is not part of the records: calling it dereferences nil.
	stream, err := d.podsAPI.Logs(context.Background(), connect.NewRequest(&orlopv1.LogsRequest{Pod: "a"}))
	if err == nil {
		for stream.Receive() {
		}
		err = stream.Err()
	}
	if connect.CodeOf(err) != connect.CodeInternal || kind(t, err) != "internal" {
		t.Error(err)
	}
	if _, err := d.podsAPI.List(context.Background(), connect.NewRequest(&orlopv1.ListPodsRequest{})); err != nil {
		t.Error(err)
	}
}

// Stopping ends what would go on for ever, with an error that says so, and at once.
func TestStop(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	d.pods.entered = make(chan string)
	stream, err := d.podsAPI.Events(context.Background(), connect.NewRequest(&orlopv1.EventsRequest{Watch: true}))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for stream.Receive() {
		}
		done <- stream.Err()
	}()
	<-d.pods.entered
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-done; kind(t, err) != "unavailable" {
		t.Error(err)
	}
}

func TestSelector(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	ctx := context.Background()
	for name, labels := range map[string]map[string]string{"a": {"tier": "web", "v": "1"}, "b": {"tier": "db"}, "c": nil} {
		d.pods.Apply(ctx, pod.Spec{Key: pod.Key{Namespace: "default", Name: name}, Labels: labels})
	}
	d.pods.Apply(ctx, pod.Spec{Key: pod.Key{Namespace: "other", Name: "d"}, Labels: map[string]string{"tier": "web"}})
	for _, tt := range []struct{ namespace, selector, want string }{
		{"", "", "a b c d"}, {"default", "", "a b c"}, {"default", "tier=web", "a"}, {"", "tier in (web,db),!v", "b d"}, {"", "tier!=web", "b c"},
	} {
		r, err := d.podsAPI.List(ctx, connect.NewRequest(&orlopv1.ListPodsRequest{Namespace: tt.namespace, Selector: tt.selector}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range r.Msg.Pods {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%q: %s instead of %s", tt.selector, got, tt.want)
		}
	}
	if _, err := d.podsAPI.List(ctx, connect.NewRequest(&orlopv1.ListPodsRequest{Selector: "a==="})); kind(t, err) != "invalid" {
		t.Error(err)
	}
}

// A secret's values leave the daemon only when they are asked for.
func TestSecrets(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	ctx := context.Background()
	if _, err := d.manifests.Apply(ctx, apply(app)); err != nil {
		t.Fatal(err)
	}
	get := func(kind string, reveal bool) string {
		r, err := d.configs.Get(ctx, connect.NewRequest(&orlopv1.GetConfigRequest{Kind: kind, Name: map[string]string{"Secret": "key", "ConfigMap": "conf"}[kind], Reveal: reveal}))
		if err != nil {
			t.Fatal(err)
		}
		return string(r.Msg.Config.Items[0].Value)
	}
	if got := get("Secret", false); got != "" {
		t.Errorf("an unasked secret: %q", got)
	}
	if got := get("Secret", true); got != "not for everybody" {
		t.Errorf("%q", got)
	}
	if got := get("ConfigMap", false); got != "b" {
		t.Errorf("%q", got)
	}
	r, err := d.configs.List(ctx, connect.NewRequest(&orlopv1.ListConfigsRequest{}))
	if err != nil || len(r.Msg.Configs) != 2 {
		t.Fatalf("%v, %v", r, err)
	}
	for _, c := range r.Msg.Configs {
		for _, it := range c.Items {
			if it.Value != nil || it.SizeBytes == 0 {
				t.Errorf("a list shows %v", it)
			}
		}
	}
	// Nor is a secret in what inspecting its pod shows.
	p, err := d.podsAPI.Get(ctx, connect.NewRequest(&orlopv1.GetPodRequest{Name: "app", WithObject: true}))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := p.Msg.Pod.Object.MarshalJSON()
	if strings.Contains(string(raw), "not for everybody") || !strings.Contains(string(raw), `"claimName":"data"`) {
		t.Errorf("%s", raw)
	}
}

// An image goes in by a stream and comes out by one, the same.
func TestImages(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	ctx := context.Background()
	src := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	if err := os.WriteFile(filepath.Join(src, "big"), big, 0o644); err != nil {
		t.Fatal(err)
	}
	packed, err := d.images.Pack(ctx, connect.NewRequest(&orlopv1.PackImageRequest{Source: src, Name: "localhost/big:1", Entrypoint: []string{"/big"}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.images.Pack(ctx, connect.NewRequest(&orlopv1.PackImageRequest{Source: "relative", Name: "a"})); kind(t, err) != "invalid" {
		t.Error(err)
	}
	var archive bytes.Buffer
	out, err := d.images.Export(ctx, connect.NewRequest(&orlopv1.ExportImageRequest{Images: []string{"localhost/big:1"}}))
	if err != nil {
		t.Fatal(err)
	}
	for out.Receive() {
		archive.Write(out.Msg().Data)
	}
	if out.Err() != nil {
		t.Fatal(out.Err())
	}
	if _, err := tar.NewReader(bytes.NewReader(archive.Bytes())).Next(); err != nil {
		t.Fatal(err)
	}
	if r, err := d.images.Remove(ctx, connect.NewRequest(&orlopv1.RemoveImageRequest{Image: "localhost/big:1"})); err != nil || len(r.Msg.Removed) != 1 || r.Msg.FreedBytes < int64(len(big)) {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := d.images.Inspect(ctx, connect.NewRequest(&orlopv1.InspectImageRequest{Image: "localhost/big:1"})); kind(t, err) != "not found" {
		t.Error(err)
	}

	in := d.images.Import(ctx)
	if err := in.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Start_{Start: &orlopv1.ImportImageRequest_Start{}}}); err != nil {
		t.Fatal(err)
	}
	for b := archive.Bytes(); len(b) > 0; {
		n := min(len(b), 64<<10)
		if err := in.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Data{Data: b[:n]}}); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	if err := in.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	progress := 0
	var images []*orlopv1.Image
	for {
		m, err := in.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetProgress() != nil {
			progress++
		}
		images = append(images, m.GetImages().GetImages()...)
	}
	in.CloseResponse()
	if progress == 0 {
		t.Error("no progress was reported")
	}
	if len(images) != 1 || images[0].Id != packed.Msg.Image.Id || images[0].Names[0] != "localhost/big:1" {
		t.Errorf("%v instead of %v", images, packed.Msg.Image)
	}
	// A damaged archive is an error and leaves nothing.
	in = d.images.Import(ctx)
	in.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Start_{Start: &orlopv1.ImportImageRequest_Start{}}})
	in.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Data{Data: archive.Bytes()[:archive.Len()/2]}})
	in.CloseRequest()
	for err = nil; err == nil; {
		_, err = in.Receive()
	}
	if errors.Is(err, io.EOF) {
		t.Error("half an archive is an image")
	}
	list, err := d.images.List(ctx, connect.NewRequest(&orlopv1.ListImagesRequest{}))
	if err != nil || len(list.Msg.Images) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if got, err := d.images.Inspect(ctx, connect.NewRequest(&orlopv1.InspectImageRequest{Image: "localhost/big:1"})); err != nil {
		t.Error(err)
	} else if raw, _ := got.Msg.Image.Config.MarshalJSON(); !strings.Contains(string(raw), `"/big"`) {
		t.Errorf("%s", raw)
	}
	df, err := d.system.DiskUsage(ctx, connect.NewRequest(&orlopv1.DiskUsageRequest{}))
	if err != nil || df.Msg.Items[0].SizeBytes < int64(len(big)) || df.Msg.Items[0].Count != 1 {
		t.Errorf("%v, %v", df, err)
	}
	pruned, err := d.system.Prune(ctx, connect.NewRequest(&orlopv1.PruneRequest{AllImages: true, Volumes: true}))
	if err != nil || !slices.Contains(pruned.Msg.Removed, "image "+packed.Msg.Image.Id) {
		t.Errorf("%v, %v", pruned, err)
	}
}

// What `inspect` shows is what Kubernetes' own types say, and can be applied again.
func TestObject(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	ctx := context.Background()
	if _, err := d.manifests.Apply(ctx, apply(app)); err != nil {
		t.Fatal(err)
	}
	p, err := d.podsAPI.Get(ctx, connect.NewRequest(&orlopv1.GetPodRequest{Name: "app", WithObject: true}))
	if err != nil {
		t.Fatal(err)
	}
	before := d.pods.list[pod.Key{Namespace: "default", Name: "app"}].Spec
	raw, _ := p.Msg.Pod.Object.MarshalJSON()
	if _, err := d.manifests.Apply(ctx, apply(string(raw))); err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	a, _ := json.Marshal(before)
	b, _ := json.Marshal(d.pods.list[pod.Key{Namespace: "default", Name: "app"}].Spec)
	if !bytes.Equal(a, b) {
		t.Errorf("%s\n%s", a, b)
	}
}

// A pull from a registry reports every layer to its end; one whose client goes away
// ends.
func TestPull(t *testing.T) {
	d := newDaemon(t)
	close(d.ready)
	const layers = 4
	layout, err := imagetest.Generate(filepath.Join(t.TempDir(), "layout"), 200, 8<<20, layers)
	if err != nil {
		t.Fatal(err)
	}
	var hang atomic.Bool
	hanging := make(chan struct{}, 64)
	reg := &imagetest.Registry{Fault: func(_ http.ResponseWriter, r *http.Request) bool {
		if !hang.Load() || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		hanging <- struct{}{}
		<-r.Context().Done()
		return true
	}}
	reg.Add("team/app", layout)
	srv := httptest.NewServer(reg)
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/app:1"

	hang.Store(true)
	pull := func(ctx context.Context, ref string, each func(*orlopv1.PullImageResponse)) error {
		// The call itself returns with the first message only.
		stream, err := d.images.Pull(ctx, connect.NewRequest(&orlopv1.PullImageRequest{Image: ref}))
		if err != nil {
			return err
		}
		for stream.Receive() {
			each(stream.Msg())
		}
		return stream.Err()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- pull(ctx, ref, func(*orlopv1.PullImageResponse) {}) }()
	<-hanging
	cancel()
	if err := <-done; connect.CodeOf(err) != connect.CodeCanceled {
		t.Error(err)
	}
	hang.Store(false)

	last := map[int32]*orlopv1.LayerProgress{}
	var img *orlopv1.Image
	err = pull(context.Background(), ref, func(m *orlopv1.PullImageResponse) {
		if p := m.GetProgress(); p != nil {
			last[p.Index] = p
		} else {
			img = m.GetImage()
		}
	})
	if err != nil || img == nil || len(img.Layers) != layers || len(last) != layers {
		t.Fatalf("%v, %v, progress of %d layers", err, img, len(last))
	}
	for i, p := range last {
		if p.Count != layers || p.State != string(image.ProgressDone) || p.DoneBytes != p.TotalBytes || p.TotalBytes == 0 {
			t.Errorf("layer %d ends with %v", i, p)
		}
	}
	if err := pull(context.Background(), strings.Replace(ref, "/app", "/none", 1), func(*orlopv1.PullImageResponse) {}); kind(t, err) != "not found" {
		t.Error(err)
	}
}
