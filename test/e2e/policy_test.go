package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// toolImage builds an image of the tool, with something that makes it another one.
func toolImage(t *testing.T, mark string) *imagetest.Layout {
	t.Helper()
	data, err := os.ReadFile(bin + "/tool")
	if err != nil {
		t.Fatal(err)
	}
	tool := imagetest.File("bin/tool", string(data))
	tool.Mode = 0o755
	l, err := imagetest.Build(t.TempDir(), []imagetest.Layer{{Entries: []imagetest.Entry{imagetest.Dir("bin"), tool, imagetest.File("mark", mark)}}},
		func(c *ocispec.Image, _ *ocispec.Manifest) {
			c.Config.Entrypoint, c.Config.Cmd = []string{"/bin/tool"}, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serveIn serves the registry inside the node, and returns its address.
func (n *node) serveIn(h http.Handler) string {
	n.t.Helper()
	var l net.Listener
	if err := namespace.Do(n.netns, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	n.t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// TestImagePolicy: what is not signed is not run, by whoever asks for it; where the
// disk is full, what nobody uses goes.
func TestImagePolicy(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	right := imagetest.NewSigner(t)
	sigs := &imagetest.Signatures{T: t}
	sigs.Put(nil)
	reg := imagetest.Registry{Fault: sigs.Serve}
	l, other := toolImage(t, "1"), toolImage(t, "2")
	reg.Add("team/app", l)
	reg.Add("free/app", other)
	host := n.serveIn(&reg)
	certs := t.TempDir()
	if err := os.Mkdir(certs+"/reg.test", 0o755); err != nil {
		t.Fatal(err)
	}
	n.write(certs+"/reg.test/hosts.toml", fmt.Sprintf("server = \"http://%s\"\n", host))
	conf, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	n.write(n.config, string(conf)+fmt.Sprintf(`
image:
  hostsDirs: [%s]
  policy:
    rules:
      - prefix: reg.test/team
        action: signedBy
        keys:
          - |
%s
  gc: {highPercent: 2, lowPercent: 1, minAge: 0s, interval: 1s}
`, certs, "            "+strings.ReplaceAll(strings.TrimSpace(right.Public), "\n", "\n            ")))
	n.kill()
	n.start()

	const name = "reg.test/team/app:1"
	pull := func() error {
		_, err := c.images.PullImage(deadline(t), &v1.PullImageRequest{Image: &v1.ImageSpec{Image: name}})
		return err
	}
	if err := pull(); status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), "SignatureValidationFailed: ") {
		t.Errorf("unsigned, by the CRI: %v", err)
	}
	if _, err := n.try("image", "pull", "-q", name); err == nil || !strings.Contains(err.Error(), "it is not signed") {
		t.Errorf("unsigned, by the command: %v", err)
	}
	n.applyText(`{apiVersion: v1, kind: Pod, metadata: {name: app}, spec: {containers: [{name: app, image: "` + name + `", args: [count]}]}}`)
	n.becomes("app", "waiting for a signature", func(p corev1.Pod) bool {
		w := container(p, "app").State.Waiting
		return w != nil && strings.Contains(w.Message, "it is not signed")
	})
	n.orlop("delete", "pod", "app")

	p := right.Payload(l.Manifest.Digest, "reg.test/team/app")
	sigs.Tag(l.Manifest.Digest, p, right.Sign(t, p))
	if err := pull(); err != nil {
		t.Fatalf("signed: %v\n%s", err, n.tail())
	}
	pod := c.run(t, c.sandbox())
	cc := criContainer("app", "count")
	cc.Image.Image = name
	c.start(t, pod, cc)

	// The other image, which nothing uses, goes; the disk is fuller than 2 %.
	n.orlop("image", "pull", "-q", "reg.test/free/app:1")
	n.eventually(20*time.Second, func() error {
		if out := n.orlop("image", "ls"); strings.Contains(out, "free/app") {
			return fmt.Errorf("it is still here: %s", out)
		}
		return nil
	})
	if out := n.orlop("events"); !strings.Contains(out, "ImagesRemoved") || !strings.Contains(out, "free/app:1") || !strings.Contains(out, "DiskFull") {
		t.Errorf("events: %s", out)
	}
	if out, err := n.http(http.MethodGet, "http://127.0.0.1:9464/metrics", ""); err != nil || !strings.Contains(out, "orlop_images_collected_total 1") {
		t.Errorf("metrics: %v %s", err, out)
	}
	out := n.orlop("image", "ls") // what runs, and what was made here, stays
	if !strings.Contains(out, name) || !strings.Contains(out, "localhost/tool:1") {
		t.Errorf("images: %s", out)
	}
	c.remove(t, pod)
}

// TestMigrate moves images in from a store of containerd.
func TestMigrate(t *testing.T) {
	n := newNode(t)
	l := toolImage(t, "1")
	root := t.TempDir()
	content := root + "/io.containerd.content.v1.content/blobs"
	if err := os.MkdirAll(content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(content+"/sha256", os.DirFS(l.Dir+"/blobs/sha256")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/io.containerd.metadata.v1.bolt", 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(root+"/io.containerd.metadata.v1.bolt/meta.db", 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	const name = "reg.test/team/app:1"
	byDigest := "reg.test/team/app@" + l.Manifest.Digest.String()
	if err := db.Update(func(tx *bolt.Tx) error {
		for _, key := range []string{name, byDigest, l.Image.Config.Digest.String()} {
			var b *bolt.Bucket
			var err error
			for i, part := range []string{"v1", "k8s.io", "images", key, "target"} {
				if i == 0 {
					b, err = tx.CreateBucketIfNotExists([]byte(part))
				} else {
					b, err = b.CreateBucketIfNotExists([]byte(part))
				}
				if err != nil {
					return err
				}
			}
			for k, v := range map[string][]byte{"digest": []byte(l.Manifest.Digest), "mediatype": []byte(l.Manifest.MediaType), "size": binary.AppendVarint(nil, l.Manifest.Size)} {
				if err := b.Put([]byte(k), v); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	old, made := dir+"/config.toml", dir+"/orlop.yaml"
	n.write(old, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"pause\"\n  max_container_log_line_size = 1\n  [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"/etc/containerd/certs.d\"\n")
	args := []string{"migrate", "containerd", "--root", root, "--config", old, "--out", made}
	n.wants("dry run", n.orlop(append(args, "--dry-run")...), old+":4: ", "max_container_log_line_size", "hostsDirs", "would be imported")
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("a dry run wrote: %v", err)
	}
	n.wants("migration", n.orlop(args...), "image "+name+": imported", "configuration written", "1 of 1 images imported")
	n.orlop("config", "check", made)
	if out, err := n.try(args...); err == nil || out != "" || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over a file that is there: %s, %v", out, err)
	}
	n.wants("again", n.orlop("migrate", "containerd", "--root", root, "--config", ""), "is here already", "0 of 1 images imported")
	for _, ref := range []string{name, byDigest} {
		n.wants("image", n.orlop("image", "inspect", ref), l.Image.Config.Digest.String())
	}
	n.applyText(`{apiVersion: v1, kind: Pod, metadata: {name: app}, spec: {containers: [{name: app, image: "` + byDigest + `", args: [count]}]}}`)
	n.becomes("app", "running", running)
	n.orlop("delete", "pod", "app", "--grace", "0")
}
