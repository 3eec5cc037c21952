package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

// archive returns the entries as a tar stream.
func archive(t testing.TB, entries ...imagetest.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := imagetest.Tar(&b, entries); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// into unpacks the stream standalone into a new directory inside a watched one.
func into(t testing.TB, stream []byte, o Options) (string, Result, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r, err := Unpack(t.Context(), root, bytes.NewReader(stream), o)
	return dir, r, err
}

// listing describes a tree, one line an entry, sorted.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("%s %o", rel, st.Mode&0o7777)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			what = "dir " + what
			var v [8]byte
			if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", v[:]); err == nil && string(v[:n]) == "y" {
				what += " opaque"
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what = "file " + what + " " + string(b)
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			what = "link " + rel + " -> " + to
		case unix.S_IFCHR:
			what = "whiteout " + rel
			if st.Rdev != 0 {
				what = "device " + rel
			}
		case unix.S_IFIFO:
			what = "fifo " + what
		}
		lines = append(lines, what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func entry(h tar.Header) imagetest.Entry { return imagetest.Entry{Header: h} }

// Entries for the tables below, short so that a case is one line.
var (
	file  = imagetest.File
	dirE  = imagetest.Dir
	sym   = imagetest.Symlink
	hard  = imagetest.Hardlink
	wh    = imagetest.Whiteout
	opq   = imagetest.Opaque
	xattr = func(name, key, value string) imagetest.Entry {
		return entry(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr." + key: value}})
	}
)

// TestHostile: each of these is an error of the kind, says what is wrong, and
// changes nothing outside the layer.
func TestHostile(t *testing.T) {
	outside := t.TempDir()
	deep := strings.Repeat("a/", 2000)
	for name, c := range map[string]struct {
		entries []imagetest.Entry
		want    string
		kind    error
	}{
		"dot dot":                       {[]imagetest.Entry{file("../evil", "x")}, "goes up", errs.Invalid},
		"dot dot inside":                {[]imagetest.Entry{dirE("a"), file("a/../b", "x")}, "goes up", errs.Invalid},
		"dot dot absolute":              {[]imagetest.Entry{file("/../evil", "x")}, "goes up", errs.Invalid},
		"dot dot directory":             {[]imagetest.Entry{dirE("a/../..")}, "goes up", errs.Invalid},
		"through absolute symlink":      {[]imagetest.Entry{sym("out", outside), file("out/evil", "x")}, "absolute symlink", errs.Invalid},
		"through relative symlink":      {[]imagetest.Entry{sym("out", "../../../../../../../../../.."+outside), file("out/evil", "x")}, "leaves the layer", errs.Invalid},
		"through nested symlinks":       {[]imagetest.Entry{dirE("a"), sym("a/b", ".."), sym("c", "a/b/.."), file("c/evil", "x")}, "leaves the layer", errs.Invalid},
		"directory through symlink":     {[]imagetest.Entry{sym("out", outside), dirE("out/evil")}, "absolute symlink", errs.Invalid},
		"symlink loop":                  {[]imagetest.Entry{sym("a", "b"), sym("b", "a"), file("a/x", "x")}, "more than 40 symlinks", errs.Invalid},
		"through hard-linked symlink":   {[]imagetest.Entry{sym("a", outside), hard("b", "a"), file("b/evil", "x")}, "absolute symlink", errs.Invalid},
		"hard link out":                 {[]imagetest.Entry{hard("passwd", "../../../../etc/passwd")}, "goes up", errs.Invalid},
		"hard link through symlink":     {[]imagetest.Entry{sym("etc", "/etc"), hard("passwd", "etc/passwd")}, "absolute symlink", errs.Invalid},
		"hard link to directory":        {[]imagetest.Entry{dirE("d"), hard("e", "d")}, "hard link to a directory", errs.Invalid},
		"hard link to root":             {[]imagetest.Entry{hard("e", "/")}, "hard link to the root", errs.Invalid},
		"hard link to whiteout":         {[]imagetest.Entry{wh("", "x"), hard("y", "x")}, "the layer removes", errs.Invalid},
		"hard link over its directory":  {[]imagetest.Entry{dirE("d"), file("d/f", "x"), hard("d", "d/f")}, "replaces a directory", errs.Invalid},
		"block device":                  {[]imagetest.Entry{entry(tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8})}, "device node", errs.Invalid},
		"char device":                   {[]imagetest.Entry{dirE("dev"), entry(tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1})}, "device node", errs.Invalid},
		"ready-made whiteout":           {[]imagetest.Entry{entry(tar.Header{Name: "x", Typeflag: tar.TypeChar})}, "device node", errs.Invalid},
		"null outside dev":              {[]imagetest.Entry{entry(tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3})}, "device node", errs.Invalid},
		"unknown type":                  {[]imagetest.Entry{entry(tar.Header{Name: "x", Typeflag: 'Q'})}, "type", errs.Invalid},
		"whiteout of nothing":           {[]imagetest.Entry{file(".wh.", "")}, "no name that a file can have", errs.Invalid},
		"whiteout of dot":               {[]imagetest.Entry{file(".wh..", "")}, "no name that a file can have", errs.Invalid},
		"whiteout of parent":            {[]imagetest.Entry{dirE("a"), file("a/.wh...", "")}, "no name that a file can have", errs.Invalid},
		"whiteout of whiteout":          {[]imagetest.Entry{file(".wh..wh.x", "")}, "no name that a file can have", errs.Invalid},
		"directory named like whiteout": {[]imagetest.Entry{dirE(".wh.x")}, "is no file", errs.Invalid},
		"below a whiteout name":         {[]imagetest.Entry{file(".wh.x/y", "")}, "reserved", errs.Invalid},
		"symlink named like whiteout":   {[]imagetest.Entry{sym(".wh.x", "y")}, "is no file", errs.Invalid},
		"root is a file":                {[]imagetest.Entry{file(".", "x")}, "must be a directory", errs.Invalid},
		"root is a symlink":             {[]imagetest.Entry{sym(".", "/etc")}, "must be a directory", errs.Invalid},
		"overlay redirect":              {[]imagetest.Entry{xattr("f", "trusted.overlay.redirect", "/etc")}, "trusted.overlay.redirect", errs.Invalid},
		"overlay user attribute":        {[]imagetest.Entry{xattr("f", "user.overlay.metacopy", "")}, "user.overlay", errs.Invalid},
		"huge attribute":                {[]imagetest.Entry{xattr("f", "user.x", strings.Repeat("v", 70<<10))}, "extended attribute", errs.Invalid},
		"large attribute":               {[]imagetest.Entry{xattr("f", "user.x", strings.Repeat("v", 60<<10))}, "extended attribute", errs.Invalid},
		"long attribute name":           {[]imagetest.Entry{xattr("f", "user."+strings.Repeat("n", 300), "v")}, "extended attribute", errs.Invalid},
		"long component":                {[]imagetest.Entry{file(strings.Repeat("n", 256), "x")}, "longer than", errs.Invalid},
		"long path":                     {[]imagetest.Entry{file(deep+deep+"f", "x")}, "bytes long", errs.Invalid},
		"long link target":              {[]imagetest.Entry{sym("l", strings.Repeat("t", 5000))}, "target", errs.Invalid},
		"file as directory":             {[]imagetest.Entry{file("f", "x"), file("f/g", "x")}, "should be a directory", errs.Invalid},
		"bad owner":                     {[]imagetest.Entry{entry(tar.Header{Name: "f", Typeflag: tar.TypeReg, Uid: 1 << 32, Format: tar.FormatPAX})}, "owner", errs.Invalid},
		"too many files":                {[]imagetest.Entry{file("a", ""), file("b", ""), file("c", ""), file("d", ""), file("e", ""), file("f", ""), file("g", "")}, "more than 6 files", errs.ResourceExhausted},
		"too many implied directories":  {[]imagetest.Entry{file("a/b/c/d/e/f/g", "")}, "more than 6 files", errs.ResourceExhausted},
		"too many whiteouts":            {[]imagetest.Entry{wh("", "a"), wh("", "b"), wh("", "c"), wh("", "d"), wh("", "e"), wh("", "f"), wh("", "g")}, "more than 6 files", errs.ResourceExhausted},
		"too many bytes":                {[]imagetest.Entry{file("a", strings.Repeat("x", 600<<10)), file("b", strings.Repeat("x", 600<<10))}, "more than 1048576 bytes", errs.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := into(t, archive(t, c.entries...), Options{MaxBytes: 1 << 20, MaxFiles: 6})
			if c.kind == nil {
				return // only must not do harm
			}
			if name == "large attribute" && unix.Setxattr(t.TempDir(), "user.x", make([]byte, 60<<10), 0) == nil {
				if err != nil { // XFS and tmpfs take it, ext4 does not
					t.Errorf("an attribute that this filesystem takes: %v", err)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\nwant %q of kind %v", err, c.want, c.kind)
			}
		})
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written outside: %v, %v", left, err)
	}
}

// TestStreams: streams that are no archives.
func TestStreams(t *testing.T) {
	good := archive(t, dirE("d"), file("d/f", strings.Repeat("data", 1000)))
	sparse := tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 1 << 50}
	var big bytes.Buffer
	tw := tar.NewWriter(&big)
	if err := tw.WriteHeader(&sparse); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stream []byte
		kind   error
	}{
		"garbage":     {bytes.Repeat([]byte("garbage!"), 100), errs.Invalid},
		"cut in data": {good[:1500], errs.Invalid},
		"cut header":  {good[:700], errs.Invalid},
		"huge size":   {big.Bytes(), errs.ResourceExhausted},
		"empty":       {nil, nil}, // the image-spec's empty layer is 1024 zeros, and Go's reader takes less
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := into(t, c.stream, Options{MaxBytes: 1 << 30})
			if c.kind == nil && err != nil || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("error %v, want kind %v", err, c.kind)
			}
		})
	}
	t.Run("reader fails", func(t *testing.T) {
		dir := t.TempDir()
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		broken := errors.New("the network")
		_, err = Unpack(t.Context(), root, io.MultiReader(bytes.NewReader(good[:1500]), errReader{broken}), Options{})
		if !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestStandalone: what a layer looks like on the disk.
func TestStandalone(t *testing.T) {
	for name, c := range map[string]struct {
		entries   []imagetest.Entry
		want      string
		dependent bool
	}{
		"plain":                       {[]imagetest.Entry{dirE("a"), file("a/f", "1"), sym("a/l", "/etc/passwd"), hard("a/h", "a/f")}, "dir . 755\ndir a 755\nfile a/f 644 1\nfile a/h 644 1\nlink a/l -> /etc/passwd", false},
		"leading slash":               {[]imagetest.Entry{dirE("/a"), file("/a/f", "1"), hard("b", "/a/f")}, "dir . 755\ndir a 755\nfile a/f 644 1\nfile b 644 1", false},
		"dots":                        {[]imagetest.Entry{dirE("./a"), file("./a/./f", "1")}, "dir . 755\ndir a 755\nfile a/f 644 1", false},
		"whiteout":                    {[]imagetest.Entry{wh("", "gone")}, "dir . 755\nwhiteout gone", false},
		"opaque":                      {[]imagetest.Entry{dirE("d"), opq("d"), file("d/f", "1")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 1", false},
		"whiteout then directory":     {[]imagetest.Entry{wh("", "d"), dirE("d"), file("d/f", "1")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 1", false},
		"directory then whiteout":     {[]imagetest.Entry{dirE("d"), file("d/f", "1"), wh("", "d")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 1", false},
		"whiteout then file":          {[]imagetest.Entry{wh("", "f"), file("f", "1")}, "dir . 755\nfile f 644 1", false},
		"file then whiteout":          {[]imagetest.Entry{file("f", "1"), wh("", "f")}, "dir . 755\nfile f 644 1", false},
		"whiteout twice":              {[]imagetest.Entry{wh("", "f"), wh("", "f")}, "dir . 755\nwhiteout f", false},
		"whiteout, file below":        {[]imagetest.Entry{wh("", "d"), file("d/f", "1")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 1", true},
		"file then directory":         {[]imagetest.Entry{file("d", "1"), dirE("d"), file("d/f", "2")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 2", false},
		"directory then file":         {[]imagetest.Entry{dirE("d"), file("d/f", "2"), file("d", "1")}, "dir . 755\nfile d 644 1", false},
		"file twice":                  {[]imagetest.Entry{file("f", "1"), file("f", "2")}, "dir . 755\nfile f 644 2", false},
		"symlink then file":           {[]imagetest.Entry{sym("f", "/etc/passwd"), file("f", "2")}, "dir . 755\nfile f 644 2", false},
		"symlink then directory":      {[]imagetest.Entry{sym("d", "/etc"), dirE("d"), file("d/f", "2")}, "dir . 755\ndir d 755 opaque\nfile d/f 644 2", false},
		"hard link to itself":         {[]imagetest.Entry{file("f", "1"), hard("f", "f")}, "dir . 755\nfile f 644 1", false},
		"through own symlink":         {[]imagetest.Entry{dirE("usr"), dirE("usr/lib"), sym("lib", "usr/lib"), file("lib/x", "1")}, "dir . 755\ndir usr 755\ndir usr/lib 755\nfile usr/lib/x 644 1\nlink lib -> usr/lib", false},
		"symlink swapped for another": {[]imagetest.Entry{dirE("a"), dirE("b"), sym("l", "a"), file("l/x", "1"), sym("l", "b"), file("l/x", "2")}, "dir . 755\ndir a 755\ndir b 755\nfile a/x 644 1\nfile b/x 644 2\nlink l -> b", false},
		"no parents":                  {[]imagetest.Entry{file("a/b/f", "1")}, "dir . 755\ndir a 755\ndir a/b 755\nfile a/b/f 644 1", true},
		"parents late":                {[]imagetest.Entry{file("a/f", "1"), entry(tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o700})}, "dir . 755\ndir a 700\nfile a/f 644 1", true},
		"link out of the layer":       {[]imagetest.Entry{hard("f", "bin/busybox")}, "dir . 755", true},
		"root's attributes":           {[]imagetest.Entry{entry(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700})}, "dir . 700", false},
		"modes":                       {[]imagetest.Entry{entry(tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 1000}), entry(tar.Header{Name: "t/", Typeflag: tar.TypeDir, Mode: 0o1777}), entry(tar.Header{Name: "g/", Typeflag: tar.TypeDir, Mode: 0o2775, Gid: 7}), file("g/f", "1"), entry(tar.Header{Name: "w", Typeflag: tar.TypeReg, Mode: 0o666})}, "dir . 755\ndir g 2775\ndir t 1777\nfile g/f 644 1\nfile su 4755 \nfile w 666 ", false},
		"fifo and hidden device":      {[]imagetest.Entry{dirE("dev"), entry(tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}), entry(tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600})}, "dir . 755\ndir dev 755\nfifo p 600", false},
		"aufs":                        {[]imagetest.Entry{file(".wh..wh.aufs", ""), dirE(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "")}, "dir . 755", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, r, err := into(t, archive(t, c.entries...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(t, dir); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if (r.Dependent != "") != c.dependent {
				t.Errorf("dependent %q", r.Dependent)
			}
		})
	}
}

// TestAttributes: owner, time, capabilities survive, in the right order.
func TestAttributes(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	ping := xattr("ping", "security.capability", capability)
	ping.Uid, ping.Gid, ping.Mode = 12, 34, 0o755
	selinux := xattr("labelled", "security.selinux", "x")
	user := xattr("d/", "user.key", "value")
	user.Typeflag, user.Mode = tar.TypeDir, 0o755
	dir, r, err := into(t, archive(t, ping, selinux, user, file("d/f", "x"), sym("l", "x")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Files != 5 || r.Bytes != 1 {
		t.Errorf("result %+v", r)
	}
	var st unix.Stat_t
	buf := make([]byte, 100)
	if err := unix.Lstat(dir+"/ping", &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mtim.Sec != 1_600_000_000 {
		t.Errorf("%v: %+v", err, st)
	}
	if n, err := unix.Lgetxattr(dir+"/ping", "security.capability", buf); err != nil || string(buf[:n]) != capability {
		t.Errorf("capability %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Lgetxattr(dir+"/d", "user.key", buf); err != nil || string(buf[:n]) != "value" {
		t.Errorf("attribute %q, %v", buf[:max(n, 0)], err)
	}
	for _, p := range []string{"/d", "/l"} {
		if err := unix.Lstat(dir+p, &st); err != nil || st.Mtim.Sec != 1_600_000_000 {
			t.Errorf("%s: %v, time %v", p, err, st.Mtim)
		}
	}
	if _, err := unix.Lgetxattr(dir+"/labelled", "security.selinux", buf); err == nil {
		t.Error("a label of another machine was kept")
	}
}

// TestMerged: layers that depend on the ones below, unpacked into an overlay.
func TestMerged(t *testing.T) {
	lowerEntries := []imagetest.Entry{
		dirE("usr"), dirE("usr/lib"), file("usr/lib/old", "lower"), sym("lib", "usr/lib"), dirE("run"), dirE("var"), sym("var/run", "/run"),
		entry(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}),
		dirE("d"), file("d/a", "a"), file("d/b", "b"), dirE("d/sub"), file("d/sub/c", "c"), file("f", "f"), hard("f2", "f"),
	}
	for name, c := range map[string]struct {
		entries []imagetest.Entry
		there   map[string]string // content in the merged tree
		gone    []string
	}{
		"below a symlink of the lower layer":   {[]imagetest.Entry{file("lib/new", "1")}, map[string]string{"usr/lib/new": "1", "lib/old": "lower"}, nil},
		"below an absolute symlink":            {[]imagetest.Entry{file("var/run/pid", "1")}, map[string]string{"run/pid": "1"}, nil},
		"hard link into the lower layer":       {[]imagetest.Entry{hard("g", "f")}, map[string]string{"g": "f", "f": "f", "f2": "f"}, nil},
		"hard link through a lower symlink":    {[]imagetest.Entry{hard("g", "lib/old")}, map[string]string{"g": "lower"}, nil},
		"whiteout":                             {[]imagetest.Entry{wh("", "d"), wh("", "nothing"), wh("no/dir", "x")}, map[string]string{"f": "f"}, []string{"d"}},
		"whiteout, then again":                 {[]imagetest.Entry{wh("", "d"), file("d/new", "1")}, map[string]string{"d/new": "1"}, []string{"d/a", "d/sub"}},
		"again, then whiteout":                 {[]imagetest.Entry{file("d/new", "1"), file("d/sub/x", "2"), wh("", "d")}, map[string]string{"d/new": "1", "d/sub/x": "2"}, []string{"d/a", "d/b", "d/sub/c"}},
		"opaque first":                         {[]imagetest.Entry{opq("d"), file("d/a", "new")}, map[string]string{"d/a": "new"}, []string{"d/b", "d/sub"}},
		"opaque last":                          {[]imagetest.Entry{file("d/a", "new"), opq("d")}, map[string]string{"d/a": "new"}, []string{"d/b", "d/sub"}},
		"opaque root":                          {[]imagetest.Entry{file("x/y", "1"), opq("")}, map[string]string{"x/y": "1"}, []string{"d", "f", "usr", "lib"}},
		"file over directory":                  {[]imagetest.Entry{file("d", "file"), file("q/r", "1")}, map[string]string{"d": "file"}, nil},
		"directory over file":                  {[]imagetest.Entry{file("q/r", "1"), dirE("f"), file("f/x", "1")}, map[string]string{"f/x": "1", "f2": "f"}, nil},
		"replaces a lower file":                {[]imagetest.Entry{file("q/r", "1"), file("f", "new")}, map[string]string{"f": "new", "f2": "f"}, nil},
		"keeps a lower directory's attributes": {[]imagetest.Entry{file("tmp/x", "1")}, map[string]string{"tmp/x": "1"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			lower, _, err := into(t, archive(t, lowerEntries...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			work := t.TempDir()
			l := overlay.Layers{Lower: []string{lower}, Upper: work + "/upper", Work: work + "/work"}
			for _, d := range []string{l.Upper, l.Work} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, lower)
			m, err := overlay.Mount(l)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Unpack(t.Context(), m, bytes.NewReader(archive(t, c.entries...)), Options{Merged: true})
			m.Close()
			if err != nil {
				t.Fatal(err)
			}
			if listing(t, lower) != before {
				t.Error("the lower layer was changed")
			}
			// What counts is how the layer looks as a lower one.
			over := overlay.Layers{Lower: []string{l.Upper, lower}, Upper: t.TempDir(), Work: t.TempDir()}
			if m, err = overlay.Mount(over); err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			at := func(p string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", m.Fd(), p) }
			for p, want := range c.there {
				if b, err := os.ReadFile(at(p)); err != nil || string(b) != want {
					t.Errorf("%s: %q, %v; want %q", p, b, err, want)
				}
			}
			for _, p := range c.gone {
				if _, err := os.Lstat(at(p)); !os.IsNotExist(err) {
					t.Errorf("%s is there (%v)", p, err)
				}
			}
			if st, err := os.Stat(at("tmp")); err == nil && st.Mode()&os.ModeSticky == 0 {
				t.Errorf("/tmp has lost its mode: %v", st.Mode())
			}
		})
	}
	t.Run("hard link to nowhere", func(t *testing.T) {
		lower, _, err := into(t, archive(t, lowerEntries...), Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := overlay.Mount(overlay.Layers{Lower: []string{lower}, Upper: t.TempDir(), Work: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		_, err = Unpack(t.Context(), m, bytes.NewReader(archive(t, hard("g", "nowhere"))), Options{Merged: true})
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("error %v", err)
		}
	})
}
