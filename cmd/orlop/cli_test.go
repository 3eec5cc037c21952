package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ---------------------------------------------------------- the commands

func TestEveryCommandExplainsItself(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).rootCommand()
	walk(root, func(c *cobra.Command) {
		path := c.CommandPath()
		generated := strings.HasPrefix(path, "orlop completion") || path == "orlop help"
		if c.Short == "" {
			t.Errorf("%s has no Short", path)
		}
		if c.Example == "" && !generated {
			t.Errorf("%s has no Example", path)
		}
		if !c.Runnable() && !generated {
			t.Errorf("%s does nothing", path)
		}
		if !bytes.Contains(doc, []byte("`"+path+"`")) && !strings.HasPrefix(path, "orlop completion ") {
			t.Errorf("docs/cli.md does not name `%s`", path)
		}
		// A flag must not hide a global one, nor a shorthand of it.
		seen := map[string]string{}
		for f := range flags(c) {
			for _, key := range []string{"--" + f.Name, "-" + f.Shorthand} {
				if key == "-" {
					continue
				}
				if other, ok := seen[key]; ok {
					t.Errorf("%s has %s twice: %s, %s", path, key, other, f.Usage)
				}
				seen[key] = f.Usage
			}
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", path, f.Name)
			}
		}
	})
}

// flags are a command's own and those it inherits, by name before they are merged.
func flags(c *cobra.Command) func(func(*pflag.Flag) bool) {
	return func(yield func(*pflag.Flag) bool) {
		stop := false
		visit := func(f *pflag.Flag) { stop = stop || !yield(f) }
		c.LocalNonPersistentFlags().VisitAll(visit)
		if c.HasParent() {
			c.Root().PersistentFlags().VisitAll(visit)
		}
	}
}

// Every line of an example must parse, down to the flags and the number of arguments.
func TestExamplesParse(t *testing.T) {
	walk((&app{}).rootCommand(), func(c *cobra.Command) {
		if strings.HasPrefix(c.CommandPath(), "orlop completion") {
			return
		}
		for line := range strings.Lines(c.Example) {
			_, command, ok := strings.Cut(line, "orlop ")
			if !ok {
				t.Errorf("%s: the example %q does not run orlop", c.CommandPath(), line)
				continue
			}
			command, _, _ = strings.Cut(command, " | ")
			command, _, _ = strings.Cut(command, " > ")
			command, _, _ = strings.Cut(command, " < ")
			root := (&app{}).rootCommand()
			sub, rest, err := root.Find(strings.Fields(command))
			if err == nil {
				err = sub.ParseFlags(rest)
			}
			if err == nil {
				err = sub.ValidateArgs(sub.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: the example %q: %v", c.CommandPath(), line, err)
			}
		}
	})
}

// What lists, or prints an object, does it for programs too.
func TestEveryListHasFormats(t *testing.T) {
	lists := 0
	walk((&app{}).rootCommand(), func(c *cobra.Command) {
		var want string
		switch first, _, _ := strings.Cut(c.Short, " "); {
		case first == "List" && !c.HasSubCommands(), c.Name() == "stats", c.Name() == "events", c.Name() == "df":
			lists++
			want = "format: table, wide, json, yaml"
		case c.Name() == "inspect":
			want = "format: yaml, json"
		case c.CommandPath() == "orlop version", c.CommandPath() == "orlop system info":
			want = "format: table, json, yaml"
		default:
			return
		}
		if f := c.Flags().Lookup("output"); f == nil || f.Shorthand != "o" || f.Usage != want {
			t.Errorf("%s has no -o with %q", c.CommandPath(), want)
		}
	})
	if lists < 8 {
		t.Errorf("only %d commands list", lists)
	}
}

// ------------------------------------------------------------------ output

func fixNow(t *testing.T) time.Time {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	old := now
	now = func() time.Time { return at }
	t.Cleanup(func() { now = old })
	return at
}

func testPod(at time.Time) *orlopv1.Pod {
	return &orlopv1.Pod{
		Namespace: "default", Name: "notes", Id: "0123456789abcdef", Status: "Running", Phase: "Running", Ready: false,
		Labels: map[string]string{"tier": "web", "app": "notes"}, Ips: []string{"10.88.0.2"},
		CreatedAt: timestamppb.New(at.Add(-3 * time.Minute)),
		Containers: []*orlopv1.Container{
			{Name: "setup", Role: orlopv1.Container_ROLE_INIT, Image: "localhost/setup:1", State: "terminated"},
			{Name: "web", Role: orlopv1.Container_ROLE_APP, Image: "localhost/notes:1", State: "running", Ready: true, Restarts: 2,
				Ports: []*orlopv1.PortMapping{{Port: 8080, HostPort: 80, HostIp: "127.0.0.1", Protocol: "TCP"}, {Port: 53, Protocol: "UDP"}}},
			{Name: "digest", Role: orlopv1.Container_ROLE_SIDECAR, Image: "localhost/notes:1", State: "waiting", Reason: "CrashLoopBackOff"},
		},
	}
}

func TestFormats(t *testing.T) {
	at := fixNow(t)
	pods := []*orlopv1.Pod{testPod(at), {Namespace: "other", Name: "evil\x1b[2J", Status: "Pending"}}
	for format, want := range map[string]string{
		"table": `
NAME       READY   STATUS    RESTARTS   AGE    IP
notes      1/2     Running   2          3m0s   10.88.0.2
evil [2J   0/0     Pending   0          -      -
`,
		"wide": `
NAMESPACE   NAME       READY   STATUS    RESTARTS   AGE    IP          PORTS                           IMAGES              LABELS               ID
default     notes      1/2     Running   2          3m0s   10.88.0.2   127.0.0.1:80->8080/tcp,53/udp   localhost/notes:1   app=notes,tier=web   0123456789ab
other       evil [2J   0/0     Pending   0          -      -           -                               -                   -                    -
`,
	} {
		var b bytes.Buffer
		if err := printList(&b, format, pods, podColumns(false)); err != nil {
			t.Fatal(err)
		}
		if want = want[1:]; b.String() != want {
			t.Errorf("%s:\n%s\nwant:\n%s", format, b.String(), want)
		}
	}
	e := []*orlopv1.Event{{At: timestamppb.New(at.Add(-time.Second)), Type: "Warning", Reason: "BackOff", Pod: "notes", Container: "web", Message: "again", Count: 3}}
	for format, want := range map[string]string{
		"table": "AGE   TYPE      REASON    OBJECT      MESSAGE\n1s    Warning   BackOff   notes/web   again (3 times)\n",
		"json": `[
  {
    "at": "2026-03-04T05:06:06Z",
    "type": "Warning",
    "reason": "BackOff",
    "message": "again",
    "namespace": "",
    "pod": "notes",
    "container": "web",
    "podId": "",
    "count": 3
  }
]
`,
		"yaml": `- at: "2026-03-04T05:06:06Z"
  container: web
  count: 3
  message: again
  namespace: ""
  pod: notes
  podId: ""
  reason: BackOff
  type: Warning
`,
	} {
		var b bytes.Buffer
		if err := printList(&b, format, e, eventColumns(false)); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%s:\n%s\nwant:\n%s", format, b.String(), want)
		}
	}
	var b bytes.Buffer
	printList[*orlopv1.Pod](&b, "json", nil, nil)
	if b.String() != "[]\n" {
		t.Errorf("no pods are %q", b.String())
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 150 << 20: "150 MiB", 5 << 40: "5.0 TiB", 5 << 50: "5120 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 90 * time.Second: "90s", 3*time.Minute + time.Second: "3m1s",
		50 * time.Minute: "50m", 3 * time.Hour: "3h0m", 30 * time.Hour: "30h", 100 * time.Hour: "4d"} {
		if got := duration(d); got != want {
			t.Errorf("duration(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestStats(t *testing.T) {
	at := fixNow(t)
	sample := func(at time.Time, cpu uint64) []*orlopv1.PodStats {
		u := &orlopv1.Usage{At: timestamppb.New(at), CpuNanoseconds: cpu, MemoryBytes: 1 << 20}
		return []*orlopv1.PodStats{{Namespace: "default", Pod: "notes", Total: u, Containers: []*orlopv1.ContainerStats{{Name: "web", Usage: u}}}}
	}
	for _, c := range []struct {
		cpu  uint64
		want string
	}{{1_500_000_000, "50.0%"}, {500, ""}} { // the second has started again meanwhile
		rows := statRows(sample(at, 1e9), sample(at.Add(time.Second), c.cpu), true)
		if len(rows) != 2 || cpuPercent(rows[0]) != c.want || cpuPercent(rows[1]) != c.want {
			t.Errorf("%d: %v", c.cpu, rows)
		}
	}
	if rows := statRows(nil, sample(at, 5), false); len(rows) != 1 || cpuPercent(rows[0]) != "" {
		t.Error("a pod of one sample has processor use")
	}
}

func TestProgress(t *testing.T) {
	at := fixNow(t)
	feed := func(p *progress) {
		for _, s := range []*orlopv1.LayerProgress{
			{Layer: "sha256:aaaaaaaaaaaaaaaa", Index: 0, Count: 2, State: "waiting"},
			{Layer: "sha256:bbbbbbbbbbbbbbbb", Index: 1, Count: 2, State: "already here", TotalBytes: 10},
			{Layer: "sha256:aaaaaaaaaaaaaaaa", Index: 0, Count: 2, State: "downloading", TotalBytes: 4 << 20},
			{Layer: "sha256:aaaaaaaaaaaaaaaa", Index: 0, Count: 2, State: "downloading", DoneBytes: 1 << 20, TotalBytes: 4 << 20},
			{Layer: "sha256:aaaaaaaaaaaaaaaa", Index: 0, Count: 2, State: "done", DoneBytes: 4 << 20, TotalBytes: 4 << 20},
		} {
			at = at.Add(500 * time.Millisecond)
			now = func() time.Time { return at }
			p.update(s)
		}
		p.end()
	}
	var plain, bars bytes.Buffer
	feed(newProgress(&plain))
	want := `layer 2/2  bbbbbbbbbbbb  already here  10 B
layer 1/2  aaaaaaaaaaaa  downloading   0 B of 4.0 MiB
layer 1/2  aaaaaaaaaaaa  done          4.0 MiB
`
	if plain.String() != want {
		t.Errorf("plain:\n%s\nwant:\n%s", plain.String(), want)
	}
	if strings.Contains(plain.String(), "\x1b") {
		t.Error("escapes outside of a terminal")
	}
	feed(&progress{w: &bars, terminal: true, width: 80})
	if !strings.Contains(bars.String(), "[=====               ]  1.0 MiB of 4.0 MiB  2.0 MiB/s") || !strings.Contains(bars.String(), "\x1b[2A") {
		t.Errorf("bars: %q", bars.String())
	}
}

// ------------------------------------------------------------------ errors

func remoteError(code connect.Code, kind *errs.Kind, text string, problems ...*orlopv1.Problem) error {
	e := connect.NewError(code, errors.New(text))
	d, err := connect.NewErrorDetail(&orlopv1.ErrorInfo{Kind: kind.Error(), Problems: problems})
	if err != nil {
		panic(err)
	}
	e.AddDetail(d)
	return e
}

func TestExplain(t *testing.T) {
	const unreachable = "orlop: cannot reach the daemon at /s: "
	for _, c := range []struct {
		err  error
		text string
		code int
	}{
		{&exitError{42}, "", 42},
		{&usageError{"no", "orlop ps"}, "orlop: no\nsee: orlop ps --help", 2},
		{fmt.Errorf("x: %w", &dialError{"/s", fs.ErrNotExist}), unreachable + "is it running? start it with: make up, or orlop daemon", 5},
		{connect.NewError(connect.CodeUnavailable, &dialError{"/s", os.ErrPermission}), unreachable + "permission denied; use sudo, or join the group that control.group names", 5},
		{remoteError(connect.CodeNotFound, errs.NotFound, "pod x does not exist"), "orlop: pod x does not exist", 3},
		{remoteError(connect.CodeFailedPrecondition, errs.InUse, "used"), "orlop: used", 4},
		{remoteError(connect.CodeAlreadyExists, errs.AlreadyExists, "exists"), "orlop: exists", 4},
		{remoteError(connect.CodeUnavailable, errs.Unavailable, "registry"), "orlop: registry", 1},
		{remoteError(connect.CodeDeadlineExceeded, errs.Timeout, "late"), "orlop: late", 124},
		{connect.NewError(connect.CodeUnavailable, io.ErrUnexpectedEOF), "orlop: lost the connection to the daemon at /s: unexpected EOF", 5},
		{connect.NewError(connect.CodeInvalidArgument, errors.New("protocol error: incomplete envelope: unexpected EOF")),
			"orlop: lost the connection to the daemon at /s: protocol error: incomplete envelope: unexpected EOF", 5},
		{connect.NewError(connect.CodeInternal, errors.New("bug")), "orlop: bug", 1},
		{fmt.Errorf("copy: %w", remoteError(connect.CodeNotFound, errs.NotFound, "gone")), "orlop: copy: gone", 3},
		{errs.New(errs.PermissionDenied, "run it as root"), "orlop: run it as root", 1},
		{remoteError(connect.CodeInvalidArgument, errs.Invalid, "2 problems",
			&orlopv1.Problem{File: "pod.yaml", Line: 7, Path: "spec.containers[0].image", Message: "is missing"},
			&orlopv1.Problem{File: "pod.yaml", Message: "is empty"},
			&orlopv1.Problem{Message: "wrong"}),
			"orlop: 2 problems\npod.yaml:7: spec.containers[0].image: is missing\npod.yaml: is empty\nwrong", 1},
	} {
		if text, code := explain(c.err, "/s"); text != c.text || code != c.code {
			t.Errorf("explain(%v):\n%q %d, want\n%q %d", c.err, text, code, c.text, c.code)
		}
	}
}

// -------------------------------------------------------------------- copy

func TestCopyPaths(t *testing.T) {
	for s, want := range map[string]copyPath{
		"notes:/data":   {"notes", "/data", false},
		"notes:/data/":  {"notes", "/data", true},
		"notes:/a/../b": {"notes", "/b", false},
		"./a:b":         {"", "./a:b", false},
		"dir/a:b":       {"", "dir/a:b", false},
		"/abs:/x":       {"", "/abs:/x", false},
		"-":             {"", "-", false},
		"dir/":          {"", "dir/", true},
		"notes:/a:b":    {"notes", "/a:b", false},
	} {
		if got, err := parseCopyPath(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", ":/x", "notes:", "notes:data"} {
		if got, err := parseCopyPath(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func archive(headers ...tar.Header) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		data := h.Uname // holds a file's data, for brevity
		h.Uname, h.Size = "", int64(len(data))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		io.WriteString(w, data)
	}
	w.Close()
	return &b
}

func TestExtract(t *testing.T) {
	file := func(name, data string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: data, Mode: 0o4640}
	}
	dir := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	for _, c := range []struct {
		name    string
		entries []tar.Header
		fails   bool
		warns   int
	}{
		{name: "good", entries: []tar.Header{dir("d/"), file("d/f", "x"), link("d/l", "f"), hard("d/h", "d/f"), dir("d/sub"), link("d/sub/up", "../f")}},
		{name: "read-only directory", entries: []tar.Header{{Typeflag: tar.TypeDir, Name: "d", Mode: 0o555}, file("d/f", "x")}},
		{name: "up", entries: []tar.Header{dir("d"), file("d/../../evil", "x")}, fails: true},
		{name: "beside", entries: []tar.Header{dir("d"), file("evil", "x")}, fails: true},
		{name: "prefix", entries: []tar.Header{dir("d"), file("devil", "x")}, fails: true},
		{name: "absolute", entries: []tar.Header{dir("d"), file("/evil", "x")}, fails: true},
		{name: "absolute link", entries: []tar.Header{dir("d"), link("d/l", "/"), file("d/f", "x")}, warns: 1},
		{name: "absolute link into it", entries: []tar.Header{dir("d"), link("d/l", "/srv/d/f"), link("d/top", "/srv/d"), file("d/f", "x")}},
		{name: "absolute link beside it", entries: []tar.Header{dir("d"), link("d/l", "/srv/d/../evil"), link("d/m", "/srv/devil")}, warns: 2},
		{name: "link up", entries: []tar.Header{dir("d"), link("d/l", "../evil"), file("d/f", "x")}, warns: 1},
		{name: "write through a link up", entries: []tar.Header{dir("d"), link("d/l", ".."), file("d/l/evil", "x")}, warns: 1},
		{name: "link through a link", entries: []tar.Header{dir("d"), dir("d/a"), dir("d/a/b"), link("d/s", "a/b"), link("d/x", "s/../.."), file("d/f", "x")}, warns: 1},
		{name: "hard link up", entries: []tar.Header{dir("d"), hard("d/h", "d/../../secret")}, fails: true},
		{name: "hard link absolute", entries: []tar.Header{dir("d"), hard("d/h", "/etc/passwd")}, fails: true},
		{name: "device", entries: []tar.Header{dir("d"), {Typeflag: tar.TypeChar, Name: "d/null", Devmajor: 1, Devminor: 3}}, warns: 1},
		{name: "directory replaced", entries: []tar.Header{dir("d"), link("d", "/")}, fails: true},
		{name: "two files", entries: []tar.Header{file("d", "x"), file("d/x", "x")}, fails: true},
		{name: "link alone", entries: []tar.Header{link("d", "/etc")}, fails: true},
		{name: "file", entries: []tar.Header{file("d", "x")}},
		{name: "empty", fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			os.WriteFile(filepath.Join(base, "secret"), []byte("s"), 0o600)
			os.Mkdir(filepath.Join(base, "in"), 0o755)
			warns := 0
			err := extract(archive(c.entries...), "/srv/d", filepath.Join(base, "in", "copy"), func(string) { warns++ })
			if (err != nil) != c.fails || warns != c.warns {
				t.Errorf("error %v, %d warnings", err, warns)
			}
			found := 0
			filepath.WalkDir(base, func(p string, e fs.DirEntry, err error) error {
				rel, _ := filepath.Rel(base, p)
				switch {
				case strings.HasPrefix(rel, filepath.Join("in", "copy")):
					found++
					info, _ := e.Info()
					if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
						t.Errorf("%s has mode %s", rel, info.Mode())
					}
					if e.Type() == fs.ModeSymlink {
						to, err := filepath.EvalSymlinks(p)
						if err == nil && !strings.HasPrefix(to, filepath.Join(base, "in", "copy")) {
							t.Errorf("%s leads to %s", rel, to)
						}
					}
				case rel == "." || rel == "in" || rel == "secret":
				default:
					t.Errorf("%s was written", rel)
				}
				return nil
			})
			if !c.fails && c.warns == 0 && found == 0 {
				t.Error("nothing was written")
			}
		})
	}
}

// An absolute link into what is copied leads to the copy.
func TestExtractAbsoluteLink(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "copy")
	err := extract(archive(tar.Header{Typeflag: tar.TypeDir, Name: "d"}, tar.Header{Typeflag: tar.TypeDir, Name: "d/sub"}, tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Uname: "text"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "d/sub/l", Linkname: "/srv/d/f"}), "/srv/d", dest, func(s string) { t.Error(s) })
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dest, "sub", "l")); err != nil || string(b) != "text" {
		t.Errorf("%q %v", b, err)
	}
}

// A link that the user already has at the destination is replaced, not followed.
func TestExtractReplaces(t *testing.T) {
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	os.WriteFile(victim, []byte("old"), 0o600)
	os.Mkdir(filepath.Join(base, "copy"), 0o755)
	os.Symlink(victim, filepath.Join(base, "copy", "f"))
	err := extract(archive(tar.Header{Typeflag: tar.TypeDir, Name: "d"}, tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Uname: "new"}),
		"d", filepath.Join(base, "copy"), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "old" {
		t.Errorf("the victim is %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(base, "copy", "f")); string(b) != "new" {
		t.Errorf("the copy is %q", b)
	}
}

func TestPackExtract(t *testing.T) {
	base := t.TempDir()
	src := filepath.Join(base, "src")
	os.MkdirAll(filepath.Join(src, "a", "b"), 0o755)
	os.WriteFile(filepath.Join(src, "a", "f"), []byte("data"), 0o640)
	os.Symlink("../a/f", filepath.Join(src, "a", "l"))
	var b bytes.Buffer
	if err := pack(&b, src, "d", func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	if err := extract(&b, "d", filepath.Join(base, "out"), func(s string) { t.Error(s) }); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(base, "out", "a", "l"))
	if err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
}

// ------------------------------------------------------------ small things

func TestPorts(t *testing.T) {
	for s, want := range map[string][2]uint16{"80": {80, 80}, "9000:80": {9000, 80}, ":80": {0, 80}, "0:80": {0, 80}} {
		if l, r, err := parsePorts(s); err != nil || [2]uint16{l, r} != want {
			t.Errorf("%q: %d, %d, %v", s, l, r, err)
		}
	}
	for _, s := range []string{"", ":", "x", "0", "1:", "1:0", "65536", "1:2:3", "-1"} {
		if _, _, err := parsePorts(s); err == nil {
			t.Errorf("%q is a port", s)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	for _, c := range []struct {
		typed []string
		pass  string
		left  bool
	}{
		{[]string{"abc"}, "abc", false},
		{[]string{"a\x10\x11b"}, "a", true},
		{[]string{"a\x10", "\x11"}, "a", true},
		{[]string{"\x10x"}, "\x10x", false},
		{[]string{"\x10\x10\x11"}, "\x10", true},
		{[]string{"\x11"}, "\x11", false},
	} {
		d, pass, left := &detacher{}, "", false
		for _, s := range c.typed {
			var b []byte
			b, left = d.filter([]byte(s))
			pass += string(b)
		}
		if pass != c.pass || left != c.left {
			t.Errorf("%q: %q, %t", c.typed, pass, left)
		}
	}
}

// ------------------------------------------------------- against a daemon

// fake is a daemon with a pod called notes that never becomes ready.
type fake struct {
	copied  bytes.Buffer
	ready   bool
	applied *orlopv1.ApplyRequest
}

type (
	fakePods struct {
		orlopv1connect.UnimplementedPodsHandler
		*fake
	}
	fakeManifests struct{ *fake }
	fakeImages    struct {
		orlopv1connect.UnimplementedImagesHandler
		*fake
	}
)

func (f fakeManifests) Apply(_ context.Context, r *connect.Request[orlopv1.ApplyRequest]) (*connect.Response[orlopv1.ApplyResponse], error) {
	f.applied = r.Msg
	return connect.NewResponse(&orlopv1.ApplyResponse{Results: []*orlopv1.ObjectResult{
		{Ref: &orlopv1.Ref{Kind: "Pod", Namespace: "default", Name: "notes"}, Change: "created"},
		{Ref: &orlopv1.Ref{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "data"}, Change: "unchanged"},
	}}), nil
}

func (f fakeManifests) Delete(_ context.Context, r *connect.Request[orlopv1.DeleteRequest]) (*connect.Response[orlopv1.DeleteResponse], error) {
	res := &orlopv1.DeleteResponse{}
	for _, ref := range r.Msg.Refs {
		o := &orlopv1.ObjectResult{Ref: ref, Change: "deleted"}
		if ref.Name == "missing" {
			o = &orlopv1.ObjectResult{Ref: ref, Message: "does not exist", ErrorKind: errs.NotFound.Error()}
		}
		res.Results = append(res.Results, o)
	}
	return connect.NewResponse(res), nil
}

func (f fakePods) List(_ context.Context, r *connect.Request[orlopv1.ListPodsRequest]) (*connect.Response[orlopv1.ListPodsResponse], error) {
	return connect.NewResponse(&orlopv1.ListPodsResponse{Pods: []*orlopv1.Pod{testPod(time.Now())}}), nil
}

func (f fakePods) Get(_ context.Context, r *connect.Request[orlopv1.GetPodRequest]) (*connect.Response[orlopv1.GetPodResponse], error) {
	if r.Msg.Name != "notes" {
		return nil, remoteError(connect.CodeNotFound, errs.NotFound, "pod "+r.Msg.Name+" does not exist")
	}
	p := testPod(time.Now())
	p.Ready = f.ready
	if r.Msg.WithObject {
		p.Object, _ = structpb.NewStruct(map[string]any{"kind": "Pod"})
	}
	return connect.NewResponse(&orlopv1.GetPodResponse{Pod: p}), nil
}

func (f fakePods) Events(_ context.Context, _ *connect.Request[orlopv1.EventsRequest], s *connect.ServerStream[orlopv1.Event]) error {
	return s.Send(&orlopv1.Event{Type: "Warning", Reason: "BackOff", Pod: "notes", Container: "digest", Message: "it ends again and again"})
}

func (f fakePods) Logs(_ context.Context, _ *connect.Request[orlopv1.LogsRequest], s *connect.ServerStream[orlopv1.LogsResponse]) error {
	s.Send(&orlopv1.LogsResponse{Stream: "stdout", Data: []byte("one\n")})
	return s.Send(&orlopv1.LogsResponse{Stream: "stderr", Data: []byte("two\n")})
}

// Exec echoes standard input in capitals and exits with 7.
func (f fakePods) Exec(_ context.Context, s *connect.BidiStream[orlopv1.ExecRequest, orlopv1.ExecResponse]) error {
	m, err := s.Receive()
	if err != nil {
		return err
	}
	if m.GetStart().GetPod() != "notes" {
		return remoteError(connect.CodeNotFound, errs.NotFound, "no such pod")
	}
	s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Started{Started: true}})
	s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Stderr{Stderr: []byte(strings.Join(m.GetStart().Command, " "))}})
	for m.GetStart().GetStdin() || m.GetStdin() != nil {
		if m, err = s.Receive(); err != nil {
			return err
		}
		if b := m.GetStdin(); b != nil {
			s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Stdout{Stdout: bytes.ToUpper(b)}})
		}
	}
	return s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Exit{Exit: &orlopv1.Exit{Code: 7}}})
}

func (f fakePods) CopyTo(_ context.Context, s *connect.ClientStream[orlopv1.CopyToRequest]) (*connect.Response[orlopv1.CopyToResponse], error) {
	for s.Receive() {
		if start := s.Msg().GetStart(); start != nil && start.Path != "/data" {
			return nil, remoteError(connect.CodeNotFound, errs.NotFound, start.Path+" does not exist")
		}
		f.copied.Write(s.Msg().GetTar())
	}
	return connect.NewResponse(&orlopv1.CopyToResponse{}), s.Err()
}

func (f fakePods) CopyFrom(_ context.Context, r *connect.Request[orlopv1.CopyFromRequest], s *connect.ServerStream[orlopv1.CopyFromResponse]) error {
	if r.Msg.Path != "/data" {
		return remoteError(connect.CodeNotFound, errs.NotFound, r.Msg.Path+" does not exist")
	}
	b, _ := io.ReadAll(archive(tar.Header{Typeflag: tar.TypeDir, Name: "data/"}, tar.Header{Typeflag: tar.TypeReg, Name: "data/f", Uname: "x"}))
	for len(b) > 0 {
		n := min(100, len(b))
		if err := s.Send(&orlopv1.CopyFromResponse{Tar: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (f fakePods) PortForward(_ context.Context, s *connect.BidiStream[orlopv1.PortForwardRequest, orlopv1.PortForwardResponse]) error {
	if _, err := s.Receive(); err != nil {
		return err
	}
	s.Send(&orlopv1.PortForwardResponse{Message: &orlopv1.PortForwardResponse_Connected{Connected: true}})
	var all []byte
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return s.Send(&orlopv1.PortForwardResponse{Message: &orlopv1.PortForwardResponse_Data{Data: bytes.ToUpper(all)}})
		}
		if err != nil {
			return err
		}
		all = append(all, m.GetData()...)
	}
}

func (f fakeImages) Import(_ context.Context, s *connect.BidiStream[orlopv1.ImportImageRequest, orlopv1.ImportImageResponse]) error {
	n := 0
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n += len(m.GetData())
	}
	return s.Send(&orlopv1.ImportImageResponse{Message: &orlopv1.ImportImageResponse_Images{Images: &orlopv1.ImportedImages{
		Images: []*orlopv1.Image{{Id: fmt.Sprintf("sha256:%d", n), Names: []string{"localhost/a:1"}}}}}})
}

func (f fakeImages) Export(_ context.Context, r *connect.Request[orlopv1.ExportImageRequest], s *connect.ServerStream[orlopv1.ExportImageResponse]) error {
	s.Send(&orlopv1.ExportImageResponse{Data: []byte("archive")})
	if r.Msg.Images[0] == "broken" {
		return remoteError(connect.CodeDataLoss, errs.Corrupt, "a layer is corrupt")
	}
	return nil
}

// serve starts f and returns its socket.
func (f *fake) serve(t *testing.T) string { return f.serveWith(t, fakePods{fake: f}) }

func serveTTY(t *testing.T) string { return (&fake{}).serveWith(t, ttyPods{}) }

func (f *fake) serveWith(t *testing.T, pods orlopv1connect.PodsHandler) string {
	mux := http.NewServeMux()
	mux.Handle(orlopv1connect.NewPodsHandler(pods))
	mux.Handle(orlopv1connect.NewManifestsHandler(fakeManifests{f}))
	mux.Handle(orlopv1connect.NewImagesHandler(fakeImages{fake: f}))
	dir, err := os.MkdirTemp("", "cli") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

type result struct {
	out, talk string
	code      int
}

func runCLI(ctx context.Context, socket, stdin string, args ...string) result {
	a := &app{}
	root := a.rootCommand()
	var out, talk bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&talk)
	root.SetIn(strings.NewReader(stdin))
	root.SetArgs(append([]string{"--socket", socket}, args...))
	r := result{}
	if err := root.ExecuteContext(ctx); err != nil {
		var text string
		text, r.code = explain(err, a.socket)
		talk.WriteString(text)
	}
	r.out, r.talk = out.String(), talk.String()
	return r
}

func TestAgainstADaemon(t *testing.T) {
	f := &fake{}
	socket := f.serve(t)
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "pod.yaml"), []byte("kind: Pod"), 0o644)
	os.WriteFile(filepath.Join(dir, "README"), nil, 0o644)
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		args      string
		stdin     string
		out, talk string // what they must contain; "=" before: be
		code      int
	}{
		{args: "ps", out: "notes"},
		{args: "ps -o nonsense", talk: "must be one of: table, wide, json, yaml", code: 2},
		{args: "pss", talk: "did you mean: ps", code: 2},
		{args: "image lss", talk: "orlop image has no command", code: 2},
		{args: "logs", talk: "accepts 1 arg", code: 2},
		{args: "logs notes", out: "=one\ntwo\n"},
		{args: "logs notes --since yesterday", talk: "--since takes a duration", code: 2},
		{args: "inspect notes", out: "object:\n  kind: Pod"},
		{args: "inspect missing", talk: "=orlop: pod missing does not exist", code: 3},
		{args: "inspect container notes/web -o json", out: `"role": "ROLE_APP"`},
		{args: "inspect container notes/none", talk: "has no container none", code: 3},
		{args: "inspect thing notes", talk: "is no kind", code: 2},
		{args: "apply", talk: "-f FILE", code: 2},
		{args: "apply -f " + dir, out: "=pod/notes created\npvc/data unchanged\n"},
		{args: "apply -f -", stdin: "kind: Pod", out: "pod/notes created"},
		{args: "apply -f " + in("none.yaml"), talk: "no such file", code: 3},
		{args: "apply --wait --timeout 300ms -f " + dir, out: "pod/notes created",
			talk: "pod/notes Running, 1/2 ready; digest: CrashLoopBackOff\n", code: 124},
		{args: "delete pod notes missing", out: "=pod/notes deleted\n", talk: "=pod/missing: does not exist\n", code: 3},
		{args: "delete thing notes", talk: "is no kind", code: 2},
		{args: "delete", talk: "say what to delete", code: 2},
		{args: "exec notes -- ls -l", talk: "=ls -l", code: 7},
		{args: "exec -i notes -- cat", stdin: "some input", out: "=SOME INPUT", talk: "=cat", code: 7},
		{args: "exec missing -- ls", talk: "=orlop: no such pod", code: 3},
		{args: "exec notes", talk: "orlop exec POD -- COMMAND", code: 2},
		{args: "cp notes:/data " + in("new")},
		{args: "cp notes:/none " + in("none"), talk: "=orlop: /none does not exist", code: 3},
		{args: "cp " + in("pod.yaml") + " notes:/data"},
		{args: "cp " + in("pod.yaml") + " notes:/else/where", talk: "=orlop: /else does not exist", code: 3},
		{args: "cp a b", talk: "must be in a container", code: 2},
		{args: "image import -", stdin: strings.Repeat("x", 1<<20), out: "=sha256:1048576 localhost/a:1\n"},
		{args: "image import " + in("none"), talk: "no such file", code: 3},
		{args: "image export a -f " + in("a.tar"), talk: "7 B written"},
		{args: "image export broken -f " + in("broken.tar"), talk: "a layer is corrupt", code: 1},
		{args: "image pack " + in("pod.yaml"), talk: "-t REF", code: 2},
		{args: "image ls", talk: "not implemented", code: 1},
	} {
		t.Run(c.args, func(t *testing.T) {
			r := runCLI(t.Context(), socket, c.stdin, strings.Fields(c.args)...)
			ok := func(got, want string) bool {
				if exact, is := strings.CutPrefix(want, "="); is {
					return got == exact
				}
				return strings.Contains(got, want)
			}
			if !ok(r.out, c.out) || !ok(r.talk, c.talk) || r.code != c.code {
				t.Errorf("exit code %d, want %d\nout:\n%s\nwant:\n%s\ntalk:\n%s\nwant:\n%s", r.code, c.code, r.out, c.out, r.talk, c.talk)
			}
		})
	}
	if b, err := os.ReadFile(in("new/f")); err != nil || string(b) != "x" {
		t.Errorf("the copy is %q, %v", b, err)
	}
	h, err := tar.NewReader(&f.copied).Next()
	if err != nil || h.Name != "pod.yaml" {
		t.Errorf("copied in: %v, %v", h, err)
	}
	left, _ := filepath.Glob(in("*broken*"))
	hidden, _ := filepath.Glob(in(".*broken*"))
	if len(left)+len(hidden) > 0 {
		t.Errorf("a failed export leaves %v %v", left, hidden)
	}
	if len(f.applied.GetFiles()) != 1 {
		t.Errorf("applied %v", f.applied)
	}
	f.ready = true
	if r := runCLI(t.Context(), socket, "", "apply", "--wait", "-f", dir); r.code != 0 {
		t.Errorf("ready: %+v", r)
	}
}

func TestPortForward(t *testing.T) {
	f := &fake{}
	socket := f.serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	ended := make(chan result)
	go func() { ended <- runCLI(ctx, socket, "", "port-forward", "notes", port+":8080") }()
	var conn net.Conn
	for range 100 {
		if conn, err = net.Dial("tcp", addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "hello")
	conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "HELLO" {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	if r := <-ended; r.code != 0 || r.out != addr+" -> notes:8080\n" {
		t.Errorf("%+v", r)
	}
}

func TestNoDaemon(t *testing.T) {
	r := runCLI(t.Context(), "/nonexistent/s", "", "ps")
	if r.code != 5 || !strings.Contains(r.talk, "cannot reach the daemon at /nonexistent/s: is it running?") {
		t.Errorf("%+v", r)
	}
	r = runCLI(t.Context(), "/nonexistent/s", "", "exec", "notes", "--", "ls")
	if r.code != 5 {
		t.Errorf("%+v", r)
	}
	r = runCLI(t.Context(), "/nonexistent/s", "", "version")
	if r.code != 0 || !strings.Contains(r.out, "client  dev") {
		t.Errorf("%+v", r)
	}
}
