package unpack

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

// FuzzUnpack: whatever comes, nothing outside the layer changes, and the layer has
// no device node and no attribute by which overlayfs would look elsewhere.
//
// The first byte chooses: bit 0, the rest is a tar stream or a compact list of
// entries (see compact), which reaches deeper than random streams do; bit 1,
// standalone or merged.
func FuzzUnpack(f *testing.F) {
	for _, entries := range [][]imagetest.Entry{
		{dirE("a"), file("a/f", "1"), sym("l", "../.."), file("l/x", "2"), hard("h", "a/f")},
		{wh("", "a"), opq("b"), dirE("a"), file("../x", "")},
		{sym("a", "/etc"), file("a/passwd", "x"), xattr("f", "trusted.overlay.redirect", "/")},
	} {
		f.Add(append([]byte{0}, archive(f, entries...)...))
		f.Add(append([]byte{2}, archive(f, entries...)...))
	}
	f.Add([]byte("\x01s1234f1234d0000h4321w1010o0000"))
	f.Add([]byte("\x03s1234f1234d0000h4321w1010o0000l1111f1111"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		stream := data[1:]
		if data[0]&1 != 0 {
			stream = compact(stream)
		}
		top := t.TempDir()
		for _, d := range []string{"layer", "beside", "lower", "lower/d", "lower/d/e", "work"} {
			if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for p, s := range map[string]string{"beside/secret": "secret", "lower/f": "lower", "lower/d/f": "lower", "secret": "secret"} {
			if err := os.WriteFile(filepath.Join(top, p), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("d/../../beside", filepath.Join(top, "lower/l")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(top, "beside"), filepath.Join(top, "lower/m")); err != nil {
			t.Fatal(err)
		}
		outside := listing(t, top+"/beside") + listing(t, top+"/lower")
		root, err := os.Open(top + "/layer")
		if err != nil {
			t.Fatal(err)
		}
		o := Options{MaxBytes: 1 << 20, MaxFiles: 500}
		if data[0]&2 != 0 {
			root.Close()
			o.Merged = true
			if root, err = overlay.Mount(overlay.Layers{Lower: []string{top + "/lower"}, Upper: top + "/layer", Work: top + "/work"}); err != nil {
				t.Fatal(err)
			}
		}
		_, err = Unpack(t.Context(), root, bytes.NewReader(stream), o)
		root.Close()
		if got := listing(t, top+"/beside") + listing(t, top+"/lower"); got != outside {
			t.Fatalf("changed outside (error %v):\n%s", err, got)
		}
		left, err := os.ReadDir(top)
		if err != nil || len(left) != 5 {
			t.Fatalf("beside the layer: %v, %v", left, err)
		}
		inspect(t, top+"/layer", o.Merged)
	})
}

// inspect fails on what no layer may contain.
func inspect(t *testing.T, dir string, merged bool) {
	t.Helper()
	err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFBLK:
			t.Errorf("%s is a block device", p)
		case unix.S_IFCHR:
			if st.Rdev != 0 {
				t.Errorf("%s is a device", p)
			}
		}
		for _, a := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.redirect"} {
			if _, err := unix.Lgetxattr(p, a, nil); err == nil {
				t.Errorf("%s has %s", p, a)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// names is what compact makes paths of.
var names = []string{"a", "b", "d", "f", "..", ".", "l", "m", "", "/", ".wh.a", ".wh..wh..opq", "d/e", "a/b", ".wh.d", "lower"}

// compact makes a stream of entries of five bytes each: a kind and four names.
func compact(data []byte) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for ; len(data) >= 5; data = data[5:] {
		p := names[data[1]%16] + "/" + names[data[2]%16]
		to := names[data[3]%16] + "/" + names[data[4]%16]
		h := tar.Header{Name: p, Mode: 0o755}
		switch data[0] % 8 {
		case 0:
			h.Typeflag = tar.TypeDir
		case 1:
			h.Typeflag, h.Size = tar.TypeReg, 1
		case 2:
			h.Typeflag, h.Linkname = tar.TypeSymlink, to
		case 3:
			h.Typeflag, h.Linkname = tar.TypeLink, to
		case 4:
			h.Typeflag = tar.TypeReg
			h.Name = names[data[1]%16]
		case 5:
			h.Typeflag, h.Linkname, h.Name = tar.TypeSymlink, to, names[data[1]%16]
		case 6:
			h.Typeflag = tar.TypeFifo
		case 7:
			h.Typeflag, h.Devminor = tar.TypeChar, int64(data[3]%2)
		}
		if tw.WriteHeader(&h) != nil {
			continue
		}
		if h.Size > 0 {
			if _, err := tw.Write([]byte{data[3]}); err != nil {
				break
			}
		}
	}
	tw.Close()
	return b.Bytes()
}
