// Package migrate moves images out of the stores of other runtimes, as these write
// them, into Orlop's.
package migrate

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/migrate"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: they run containerd")
		os.Exit(1)
	}
	imagetest.Main(m)
}

func openStore(t *testing.T) *image.Store {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(dir+"/state.db", store.Durable)
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(t.Context(), image.Options{Root: dir, DB: db, Config: config.Default().Image})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); db.Close() })
	return s
}

// move imports the image.
func move(ctx context.Context, s *image.Store, img *migrate.Image) ([]image.Image, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(img.WriteArchive(ctx, w)) }()
	defer r.Close()
	return s.Import(ctx, r, image.ImportOptions{})
}

// sample is an image with what layers have: links, modes, whiteouts, long names.
func sample(t *testing.T) *imagetest.Layout {
	t.Helper()
	b := make([]byte, 300_000)
	rand.Read(b)
	long := strings.Repeat("long", 40)
	setuid := imagetest.File("bin/su", "x")
	setuid.Mode = 0o4755
	l, err := imagetest.Build(t.TempDir(), []imagetest.Layer{
		{Entries: []imagetest.Entry{imagetest.Dir("bin"), setuid, imagetest.File("bin/big", string(b)), imagetest.Hardlink("bin/again", "bin/big"), imagetest.Symlink("sbin", "bin")}},
		{Entries: []imagetest.Entry{imagetest.Dir("bin"), imagetest.Whiteout("bin", "su"), imagetest.File("bin/"+long, "l"), imagetest.File("empty", "")}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// files is a digest of everything below a directory, to see that nothing changes.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintln(&b, digest.FromBytes(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// containerd runs it with a root of its own, until stop, and returns its socket.
func containerd(t *testing.T, dir string) (socket string, stop func()) {
	t.Helper()
	socket = dir + "/s"
	conf := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = %q\n",
		dir+"/root", dir+"/state", socket, socket+".ttrpc", dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("containerd", "-c", dir+"/config.toml")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal("containerd is needed: ", err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Signal(os.Interrupt)
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("containerd said:\n%s", log.Bytes()[max(0, log.Len()-4000):])
		}
	})
	for end := time.Now().Add(30 * time.Second); exec.Command("ctr", "-a", socket, "version").Run() != nil; {
		if time.Now().After(end) {
			t.Fatal("containerd does not answer")
		}
		time.Sleep(50 * time.Millisecond)
	}
	return socket, stop
}

// TestMigrateContainerd reads the store of Debian's containerd, as it runs and
// stopped.
func TestMigrateContainerd(t *testing.T) {
	var reg imagetest.Registry
	first, second := sample(t), sample(t)
	reg.Add("team/first", first)
	reg.Add("team/second", second)
	host := reg.Serve(t)
	dir := t.TempDir()
	socket, stop := containerd(t, dir)
	ctr := func(ns string, args ...string) { run(t, append([]string{"ctr", "-a", socket, "-n", ns}, args...)...) }
	name, byDigest := host+"/team/first:1", host+"/team/first@"+first.Manifest.Digest.String()
	ctr("k8s.io", "images", "pull", "--plain-http", name)
	// The CRI plugin gives an image three names.
	ctr("k8s.io", "images", "tag", name, byDigest, first.Image.Config.Digest.String())
	ctr("default", "images", "pull", "--plain-http", host+"/team/second:1")

	check := func(what string, want ...string) []migrate.Image {
		t.Helper()
		images, err := migrate.Containerd(t.Context(), dir+"/root", migrate.ContainerdNamespaces)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var got []string
		for i := range images {
			if images[i].Missing != nil {
				t.Errorf("%s: %s: %v", what, &images[i], images[i].Missing)
			}
			got = append(got, images[i].Names...)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: names %q, want %q", what, got, want)
		}
		return images
	}
	check("as it runs", name, byDigest, host+"/team/second:1")
	stop()
	before := files(t, dir+"/root")
	images := check("stopped", name, byDigest, host+"/team/second:1")
	s := openStore(t)
	for i := range images {
		if _, err := move(t.Context(), s, &images[i]); err != nil {
			t.Fatal(err)
		}
	}
	if files(t, dir+"/root") != before {
		t.Error("containerd's store was changed")
	}
	for n, l := range map[string]*imagetest.Layout{name: first, byDigest: first, host + "/team/second:1": second} {
		img, err := s.Use(t.Context(), n)
		if err != nil || img.ID != l.Image.Config.Digest || img.Manifest != l.Manifest.Digest || !img.Unpacked {
			t.Errorf("%s: %+v, %v", n, img, err)
		}
	}
	// A layer that is kept unpacked only.
	if err := os.Remove(dir + "/root/io.containerd.content.v1.content/blobs/sha256/" + second.Image.Layers[0].Digest.Encoded()); err != nil {
		t.Fatal(err)
	}
	images, err := migrate.Containerd(t.Context(), dir+"/root", []string{"default"})
	if err != nil || len(images) != 1 || images[0].Missing == nil || !strings.Contains(images[0].Missing.Error(), "1 of its 2 layers") {
		t.Errorf("%+v, %v", images, err)
	}
	// One whose content is not what its name says is found out by the import.
	bad := dir + "/root/io.containerd.content.v1.content/blobs/sha256/" + first.Image.Layers[1].Digest.Encoded()
	data, err := os.ReadFile(bad)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.Chmod(bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, data, 0o600); err != nil {
		t.Fatal(err)
	}
	images, err = migrate.Containerd(t.Context(), dir+"/root", []string{"k8s.io"})
	if err != nil || len(images) != 1 {
		t.Fatal(images, err)
	}
	if _, err := move(t.Context(), openStore(t), &images[0]); !errors.Is(err, errs.Corrupt) {
		t.Errorf("a changed layer: %v", err)
	}
	if _, err := migrate.Containerd(t.Context(), t.TempDir(), nil); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "--root") {
		t.Errorf("no store: %v", err)
	}
}

// TestMigratePodman reads the store that podman and CRI-O share, as podman writes it.
func TestMigratePodman(t *testing.T) {
	l := sample(t)
	dir := t.TempDir()
	t.Cleanup(func() { unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH) })
	podman := func(args ...string) string {
		return run(t, append([]string{"podman", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"}, args...)...)
	}
	layout, err := os.MkdirTemp("", "orlop-test-migrate") // podman wants names in lower case
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(layout)
	if err := os.CopyFS(layout, os.DirFS(l.Dir)); err != nil {
		t.Fatal(err)
	}
	podman("pull", "-q", "oci:"+layout)
	id := l.Image.Config.Digest.Encoded()
	podman("tag", id, "reg.example/team/app:1", "reg.example/team/app:latest")
	before := files(t, dir+"/root/overlay-layers") + files(t, dir+"/root/overlay-images")
	images, err := migrate.CRIO(t.Context(), dir+"/root")
	if err != nil || len(images) != 1 || images[0].Missing != nil {
		t.Fatalf("%+v, %v", images, err)
	}
	s := openStore(t)
	got, err := move(t.Context(), s, &images[0])
	if err != nil || len(got) != 1 || got[0].ID.Encoded() != id || !slices.Equal(got[0].Layers, l.Config.RootFS.DiffIDs) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, n := range []string{"reg.example/team/app:1", "reg.example/team/app:latest"} {
		if _, err := s.Use(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	if files(t, dir+"/root/overlay-layers")+files(t, dir+"/root/overlay-images") != before {
		t.Error("podman's store was changed")
	}
}
