package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/spf13/cobra"
)

func (a *app) cpCommand() *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:   "cp POD:PATH LOCAL | LOCAL POD:PATH",
		Short: "Copy files out of and into a container",
		Long: `Copies a file or a directory. Paths in containers are absolute. A destination that is a directory takes the copy
inside; one that does not exist becomes the copy. - for LOCAL is a tar stream on standard output or input.

What comes out of a container is not trusted: nothing is written outside of the copy, links that point out of it,
devices and set-user-ID bits are left out, and files are yours. What goes in belongs to root, and goes where the
container's own links lead within it.`,
		Example: `  orlop cp notes:/data/notes.db ./backup/ -c web
  orlop cp ./site notes:/data -c web
  orlop cp notes:/data - -c web > data.tar`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parseCopyPath(args[0])
			if err != nil {
				return usage(cmd, "%v", err)
			}
			to, err := parseCopyPath(args[1])
			if err != nil {
				return usage(cmd, "%v", err)
			}
			switch {
			case from.pod != "" && to.pod == "":
				return a.copyFrom(cmd, from, container, to.path)
			case from.pod == "" && to.pod != "":
				return a.copyTo(cmd, from.path, to, container)
			}
			return usage(cmd, "one of the two must be in a container: POD:PATH")
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "which container; needed if there are several")
	return cmd
}

// copyPath is one side of a copy; pod is "" if it is here.
type copyPath struct {
	pod, path string
	inside    bool // it must be a directory: it ends with /
}

func parseCopyPath(s string) (copyPath, error) {
	pod, p, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(pod, "/") || strings.HasPrefix(pod, ".") {
		if s == "" {
			return copyPath{}, errors.New("a path is empty")
		}
		return copyPath{path: s, inside: strings.HasSuffix(s, "/")}, nil
	}
	if pod == "" {
		return copyPath{}, fmt.Errorf("%q names no pod", s)
	}
	if !path.IsAbs(p) {
		return copyPath{}, fmt.Errorf("%q: a path in a container must be absolute", s)
	}
	return copyPath{pod, path.Clean(p), strings.HasSuffix(p, "/")}, nil
}

// ------------------------------------------------------------------ out

func (a *app) copyFrom(cmd *cobra.Command, from copyPath, container, local string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	r, err := a.tarOf(ctx, from, container)
	if err != nil {
		return err
	}
	defer r.Close()
	if local == "-" {
		_, err := io.Copy(cmd.OutOrStdout(), r)
		return err
	}
	dest := local
	if info, err := os.Stat(local); err == nil && info.IsDir() {
		if base := path.Base(from.path); base != "/" {
			dest = filepath.Join(local, base)
		}
	} else if strings.HasSuffix(local, "/") {
		return errs.New(errs.NotFound, "directory %s does not exist", local)
	}
	return extract(r, from.path, dest, func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), "orlop: "+clean(s)) })
}

// tarOf returns the tar stream of a path in a container.
func (a *app) tarOf(ctx context.Context, from copyPath, container string) (io.ReadCloser, error) {
	stream, err := a.client().pods.CopyFrom(ctx, connect.NewRequest(&orlopv1.CopyFromRequest{
		Namespace: a.namespace, Pod: from.pod, Container: container, Path: from.path,
	}))
	if err != nil {
		return nil, err
	}
	return &tarStream{stream: stream}, nil
}

type tarStream struct {
	stream *connect.ServerStreamForClient[orlopv1.CopyFromResponse]
	rest   []byte
}

func (t *tarStream) Close() error { return t.stream.Close() }

func (t *tarStream) Read(b []byte) (int, error) {
	for len(t.rest) == 0 {
		if !t.stream.Receive() {
			if err := t.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		t.rest = t.stream.Msg().Tar
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// extract unpacks the archive of what is at the path from, whose names begin with the last part of that,
// as dest. The archive is hostile: whatever it says, nothing outside of dest is written, and no link is
// left that leads out of it. An absolute link into what is copied leads there in the copy.
func extract(r io.Reader, from, dest string, warn func(string)) error {
	top := path.Base(from)
	tr := tar.NewReader(r)
	h, err := tr.Next()
	if err == io.EOF {
		return errors.New("the container sent nothing")
	}
	if err != nil {
		return err
	}
	// A directory is unpacked inside a root of its own; anything else is the one entry
	// of a root that is the directory it goes to.
	var root *os.Root
	single := h.Typeflag != tar.TypeDir
	if single {
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			return errs.New(errs.Unsupported, "%s is a link to %s in the container; copy that", h.Name, h.Linkname)
		default:
			return errs.New(errs.Unsupported, "%s is no file, directory or link in the container", h.Name)
		}
		root, err = os.OpenRoot(filepath.Dir(dest))
	} else {
		if err = os.Mkdir(dest, 0o755); errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err == nil {
			root, err = os.OpenRoot(dest)
		}
	}
	if err != nil {
		return fileError(err)
	}
	defer root.Close()

	type dir struct {
		name string
		h    *tar.Header
	}
	var dirs []dir
	for first := true; ; first = false {
		if !first {
			if h, err = tr.Next(); err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		name, err := below(top, h.Name)
		if err != nil {
			return err
		}
		if single {
			if !first {
				return errs.New(errs.Corrupt, "the archive of a file has another entry, %q", h.Name)
			}
			name = filepath.Base(dest)
		}
		mode := fs.FileMode(h.Mode) & 0o777
		if h.Typeflag != tar.TypeDir && name == "." {
			return errs.New(errs.Corrupt, "the archive replaces its directory with %q", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.MkdirAll(name, 0o755); err != nil {
				return err
			}
			dirs = append(dirs, dir{name, h})
		case tar.TypeReg:
			if err := makeWay(root, name); err != nil {
				return err
			}
			f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, tr)
			if err == nil {
				err = f.Chmod(mode)
			}
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			root.Chtimes(name, time.Now(), h.ModTime)
		case tar.TypeSymlink:
			if path.IsAbs(h.Linkname) && path.IsAbs(from) {
				if rel, err := filepath.Rel(path.Clean(from), path.Clean(h.Linkname)); err == nil && filepath.IsLocal(rel) {
					if h.Linkname, err = filepath.Rel(filepath.Dir(name), rel); err != nil {
						return err
					}
				}
			}
			if !filepath.IsLocal(filepath.Join(filepath.Dir(name), h.Linkname)) || path.IsAbs(h.Linkname) {
				warn(fmt.Sprintf("left out: %s, a link to %s", h.Name, h.Linkname))
				continue
			}
			if err := makeWay(root, name); err != nil {
				return err
			}
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
			// What .. means depends on the links before it: see where it really leads.
			if _, err := root.Stat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				warn(fmt.Sprintf("left out: %s, a link to %s", h.Name, h.Linkname))
				if err := root.Remove(name); err != nil {
					return err
				}
			}
		case tar.TypeLink:
			target, err := below(top, h.Linkname)
			if err != nil {
				return err
			}
			if err := makeWay(root, name); err != nil {
				return err
			}
			if err := root.Link(target, name); err != nil {
				return err
			}
		default:
			warn(fmt.Sprintf("left out: %s, which is no file, directory or link", h.Name))
		}
	}
	// Modes last: a directory may forbid what had to be written into it.
	for i := len(dirs) - 1; i >= 0; i-- {
		d := dirs[i]
		if err := root.Chmod(d.name, fs.FileMode(d.h.Mode)&0o777); err != nil {
			return err
		}
		root.Chtimes(d.name, time.Now(), d.h.ModTime)
	}
	return nil
}

// below returns name relative to top, and refuses one that is not below it.
func below(top, name string) (string, error) {
	clean := path.Clean(name)
	if !filepath.IsLocal(clean) || path.IsAbs(name) {
		return "", errs.New(errs.Corrupt, "the archive has an entry outside of it, %q", name)
	}
	if top == "/" || top == "." {
		return clean, nil
	}
	if clean == top {
		return ".", nil
	}
	if rest, ok := strings.CutPrefix(clean, top+"/"); ok {
		return rest, nil
	}
	return "", errs.New(errs.Corrupt, "the archive has an entry outside of %s, %q", top, name)
}

// makeWay makes the directories above name, and removes what is there unless it is a directory.
func makeWay(root *os.Root, name string) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return errs.New(errs.AlreadyExists, "%s is a directory here and none in the container", filepath.Join(root.Name(), name))
	}
	return root.Remove(name)
}

// ------------------------------------------------------------------- in

func (a *app) copyTo(cmd *cobra.Command, local string, to copyPath, container string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	dir, name := to.path, filepath.Base(local)
	if local != "-" {
		if _, err := os.Lstat(local); err != nil {
			return fileError(err)
		}
		if name == "." || name == ".." || name == "/" {
			abs, err := filepath.Abs(local)
			if err != nil {
				return err
			}
			name = filepath.Base(abs)
		}
		if !to.inside && to.path != "/" {
			isDir, err := a.isDir(ctx, to, container)
			if err != nil {
				return err
			}
			if !isDir {
				dir, name = path.Dir(to.path), path.Base(to.path)
			}
		}
	}
	stream := a.client().pods.CopyTo(ctx)
	w := bufio.NewWriterSize(tarSender{stream}, 256<<10)
	err := stream.Send(&orlopv1.CopyToRequest{Message: &orlopv1.CopyToRequest_Start_{Start: &orlopv1.CopyToRequest_Start{
		Namespace: a.namespace, Pod: to.pod, Container: container, Path: dir,
	}}})
	if err == nil && local == "-" {
		_, err = io.Copy(w, cmd.InOrStdin())
	} else if err == nil {
		err = pack(w, local, name, func(s string) { fmt.Fprintln(cmd.ErrOrStderr(), "orlop: "+s) })
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		cancel() // half an archive must not be taken for a whole one
		stream.CloseAndReceive()
		return err
	}
	_, err = stream.CloseAndReceive() // says why, if the daemon stopped listening
	return err
}

// isDir tells whether a path in a container is a directory; one that does not exist is none.
func (a *app) isDir(ctx context.Context, p copyPath, container string) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := a.tarOf(ctx, p, container)
	if err == nil {
		defer r.Close()
		var h *tar.Header
		if h, err = tar.NewReader(r).Next(); err == nil {
			return h.Typeflag == tar.TypeDir, nil
		}
		cancel()
	}
	if isKind(err, errs.NotFound) {
		// The pod may be what is missing: then the copy itself says so.
		return false, nil
	}
	return false, err
}

type tarSender struct {
	stream *connect.ClientStreamForClient[orlopv1.CopyToRequest, orlopv1.CopyToResponse]
}

func (s tarSender) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += 256 << 10 {
		err := s.stream.Send(&orlopv1.CopyToRequest{Message: &orlopv1.CopyToRequest_Tar{Tar: b[n:min(len(b), n+256<<10)]}})
		if err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// pack writes local and all below it to w as a tar stream, in which it is called name.
func pack(w io.Writer, local, name string, warn func(string)) error {
	// A link that is named itself is followed, those below are copied as links.
	resolved, err := filepath.EvalSymlinks(local)
	if err != nil {
		return fileError(err)
	}
	tw := tar.NewWriter(w)
	err = filepath.WalkDir(resolved, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(resolved, p)
		if err != nil {
			return err
		}
		link := ""
		switch info.Mode().Type() {
		case 0, fs.ModeDir:
		case fs.ModeSymlink:
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		default:
			warn("left out: " + p + ", which is no file, directory or link")
			return nil
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name = path.Join(name, filepath.ToSlash(rel))
		if info.IsDir() {
			h.Name += "/"
		}
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		h.Mode &= 0o777
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(tw, io.LimitReader(f, h.Size))
		if err == nil && n < h.Size {
			err = fmt.Errorf("%s became shorter while it was read", p)
		}
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
