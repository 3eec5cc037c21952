package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) imageCommand() *cobra.Command {
	return group("image", "Pull, make and manage images", `  orlop image pull docker.io/library/busybox:1.37
  orlop image ls`,
		a.imagePullCommand(), a.imageListCommand(), a.imageInspectCommand(), a.imageRemoveCommand(), a.imagePruneCommand(),
		a.imageImportCommand(), a.imageExportCommand(), a.imagePackCommand(), a.imageTagCommand())
}

func (a *app) imagePullCommand() *cobra.Command {
	req := &orlopv1.PullImageRequest{}
	var user string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Pull an image from a registry",
		Long: `Pulls an image and prints its ID. Progress goes to standard error. Credentials come from the daemon's docker
configuration, unless --username is given; the password is then read from standard input.`,
		Example: `  orlop image pull docker.io/library/busybox:1.37
  orlop image pull --platform linux/arm64 ghcr.io/example/app@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945
  orlop image pull --username me registry.example.com/app:1 < password`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Image = args[0]
			if user != "" {
				password, err := readPassword(cmd)
				if err != nil {
					return err
				}
				req.Auth = &orlopv1.RegistryAuth{Username: user, Password: password}
			}
			stream, err := a.client().images.Pull(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			defer stream.Close()
			p := newProgress(cmd.ErrOrStderr())
			var image *orlopv1.Image
			for stream.Receive() {
				m := stream.Msg()
				if m.GetProgress() != nil && !quiet {
					p.update(m.GetProgress())
				}
				if m.GetImage() != nil {
					image = m.GetImage()
				}
			}
			p.end()
			if err := stream.Err(); err != nil {
				return err
			}
			if image == nil {
				return errors.New("the daemon ended the pull without an image")
			}
			fmt.Fprintln(cmd.OutOrStdout(), image.Id)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Platform, "platform", "", "os/architecture[/variant] (default: this machine's)")
	f.StringVarP(&user, "username", "u", "", "user at the registry; the password is read from standard input")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

func readPassword(cmd *cobra.Command) (string, error) {
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), "Password: ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(b), err
	}
	b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 64<<10))
	return strings.TrimRight(string(b), "\r\n"), err
}

func (a *app) imageListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List images",
		Example: `  orlop image ls
  orlop image ls -o wide`,
		Args: cobra.NoArgs,
	}
	format := outputFlag(cmd, listFormats...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		res, err := call(cmd.Context(), a.client().images.List, &orlopv1.ListImagesRequest{})
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), *format, res.Images, imageColumns())
	}
	return cmd
}

func imageColumns() []column[*orlopv1.Image] {
	type image = *orlopv1.Image
	return []column[image]{
		{title: "NAME", cell: func(i image) string { return joined(i.Names) }},
		{title: "ID", cell: func(i image) string { return shortID(i.Id) }},
		{title: "SIZE", cell: func(i image) string { return size(i.SizeBytes) }},
		{title: "UNPACKED", cell: func(i image) string { return size(i.UnpackedBytes) }},
		{title: "AGE", cell: func(i image) string { return age(i.CreatedAt) }},
		{title: "USED BY", cell: func(i image) string { return joined(i.UsedBy) }},
		{title: "PLATFORM", wide: true, cell: image.GetPlatform},
		{title: "LAYERS", wide: true, cell: func(i image) string { return fmt.Sprint(len(i.Layers)) }},
		{title: "PINNED", wide: true, cell: func(i image) string { return fmt.Sprint(i.Pinned) }},
		{title: "DIGESTS", wide: true, cell: func(i image) string { return joined(i.Digests) }},
	}
}

func (a *app) imageInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Print everything about an image",
		Long:  "Prints everything about an image, its configuration included. IMAGE is a name, an ID or the beginning of one.",
		Example: `  orlop image inspect localhost/notes:1
  orlop image inspect 4f53cda18c2b -o json`,
		Args: cobra.ExactArgs(1),
	}
	format := outputFlag(cmd, "yaml", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := a.get(cmd, "image", args[0], false)
		if err != nil {
			return err
		}
		return printMessage(cmd.OutOrStdout(), *format, m)
	}
	return cmd
}

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images that no pod uses",
		Long:  "Takes a name away, and removes the image if it was its last one. An ID removes the image with all its names.",
		Example: `  orlop image rm localhost/app:1
  orlop image rm 4f53cda18c2b`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, image := range args {
				res, err := call(cmd.Context(), a.client().images.Remove, &orlopv1.RemoveImageRequest{Image: image})
				if err != nil {
					return err
				}
				printRemoved(cmd, res.Untagged, res.Removed, res.FreedBytes)
			}
			return nil
		},
	}
}

func (a *app) imagePruneCommand() *cobra.Command {
	req := &orlopv1.PruneImagesRequest{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images without a name that no pod uses",
		Example: `  orlop image prune
  orlop image prune -a`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := call(cmd.Context(), a.client().images.Prune, req)
			if err != nil {
				return err
			}
			printRemoved(cmd, res.Untagged, res.Removed, res.FreedBytes)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&req.All, "all", "a", false, "those with a name too")
	return cmd
}

func printRemoved(cmd *cobra.Command, untagged, removed []string, freed int64) {
	for _, s := range untagged {
		fmt.Fprintln(cmd.OutOrStdout(), "untagged "+s)
	}
	for _, s := range removed {
		fmt.Fprintln(cmd.OutOrStdout(), "removed "+s)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s freed\n", size(freed))
}

func (a *app) imageTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "tag IMAGE NAME",
		Short:   "Give an image another name",
		Example: `  orlop image tag localhost/app:1 localhost/app:latest`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := call(cmd.Context(), a.client().images.Tag, &orlopv1.TagImageRequest{Image: args[0], Name: args[1]})
			return err
		},
	}
}

func (a *app) imagePackCommand() *cobra.Command {
	req := &orlopv1.PackImageRequest{}
	cmd := &cobra.Command{
		Use:   "pack SRC -t REF",
		Short: "Make an image of a directory or one static executable",
		Long: `Makes an image with one layer: a directory as it is, or one static executable, which is then the entrypoint too.
No Dockerfile, no registry. Prints the image's ID. Lists are given by repeating the flag, one element each.`,
		Example: `  orlop image pack bin/notes -t localhost/notes:1
  orlop image pack ./rootfs -t localhost/app:1 --entrypoint /bin/app --cmd serve --env LEVEL=info --port 8080 --user 1000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Name == "" {
				return usage(cmd, "name the image with -t REF")
			}
			var err error
			if req.Source, err = filepath.Abs(args[0]); err != nil {
				return err
			}
			if _, err := os.Stat(req.Source); err != nil {
				return fileError(err)
			}
			res, err := call(cmd.Context(), a.client().images.Pack, req)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), res.Image.GetId())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.Name, "tag", "t", "", "name of the image")
	f.StringArrayVar(&req.Entrypoint, "entrypoint", nil, "what is run; may be repeated")
	f.StringArrayVar(&req.Command, "cmd", nil, "argument to the entrypoint that a manifest may replace; may be repeated")
	f.StringArrayVar(&req.Env, "env", nil, "NAME=value; may be repeated")
	f.StringVar(&req.User, "user", "", "user[:group]")
	f.StringVar(&req.WorkingDir, "workdir", "", "working directory")
	f.StringToStringVar(&req.Labels, "label", nil, "name=value; may be repeated")
	f.StringArrayVar(&req.Ports, "port", nil, "PORT[/PROTOCOL] that it listens on; may be repeated")
	return cmd
}

func (a *app) imageImportCommand() *cobra.Command {
	start := &orlopv1.ImportImageRequest_Start{}
	var quiet bool
	cmd := &cobra.Command{
		Use:   "import FILE|DIR|-",
		Short: "Import images from an archive or a layout",
		Long: `Imports the images of an OCI or Docker archive (a file, or - for standard input), or of an OCI layout (a
directory). Prints ID and names of each.`,
		Example: `  orlop image import app.tar
  docker save app:1 | orlop image import -
  orlop image import ./layout -t localhost/app:1`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&start.Name, "tag", "t", "", "name for an image that the archive does not name")
	f.StringVar(&start.Platform, "platform", "", "os/architecture[/variant] (default: this machine's)")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var data io.Reader
		if args[0] == "-" {
			data = cmd.InOrStdin()
		} else {
			file, err := os.Open(args[0])
			if err != nil {
				return fileError(err)
			}
			defer file.Close()
			info, err := file.Stat()
			if err != nil {
				return err
			}
			data = file
			if info.IsDir() {
				data = nil
				if start.Path, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			}
		}
		p := newProgress(cmd.ErrOrStderr())
		images, err := a.importImages(cmd.Context(), start, data, func(l *orlopv1.LayerProgress) {
			if !quiet {
				p.update(l)
			}
		})
		p.end()
		if err != nil {
			return err
		}
		for _, i := range images {
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(i.Id+" "+strings.Join(i.Names, " "), " "))
		}
		return nil
	}
	return cmd
}

// importImages has the daemon import what start says, or the archive data if it is
// not nil.
func (a *app) importImages(ctx context.Context, start *orlopv1.ImportImageRequest_Start, data io.Reader, progress func(*orlopv1.LayerProgress)) ([]*orlopv1.Image, error) {
	stream := a.client().images.Import(ctx)
	defer stream.CloseResponse()
	sent := make(chan error, 1)
	go func() {
		err := stream.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Start_{Start: start}})
		if err == nil && data != nil {
			err = sendChunks(data, func(b []byte) error {
				return stream.Send(&orlopv1.ImportImageRequest{Message: &orlopv1.ImportImageRequest_Data{Data: b}})
			})
		}
		var read *readError
		if errors.As(err, &read) {
			sent <- err
			stream.CloseResponse()
			return
		}
		stream.CloseRequest()
		sent <- nil
	}()
	var images []*orlopv1.Image
	for {
		m, err := stream.Receive()
		if err != nil {
			select {
			case readErr := <-sent:
				if readErr != nil {
					return nil, readErr
				}
			default:
			}
			if errors.Is(err, io.EOF) {
				return images, nil
			}
			return nil, err
		}
		if m.GetProgress() != nil {
			progress(m.GetProgress())
		}
		images = append(images, m.GetImages().GetImages()...)
	}
}

// readError is a fault of what is read here, not of the stream.
type readError struct{ err error }

func (e *readError) Error() string { return "read: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// sendChunks sends what r has, to its end.
func sendChunks(r io.Reader, send func([]byte) error) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return nil
		default:
			return &readError{err}
		}
	}
}

func (a *app) imageExportCommand() *cobra.Command {
	req := &orlopv1.ExportImageRequest{}
	var file string
	cmd := &cobra.Command{
		Use:   "export REF... -f FILE",
		Short: "Write images to an archive or a layout",
		Long: `Writes images to an archive, which docker load and podman load read too. The file appears when it is complete.
With --format oci-layout, -f names a directory.`,
		Example: `  orlop image export localhost/app:1 -f app.tar
  orlop image export localhost/app:1 -f - --format docker-archive | docker load
  orlop image export localhost/app:1 -f ./layout --format oci-layout`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "where to: a file, or - for standard output")
	format := &choice{value: "oci-archive", of: []string{"oci-archive", "docker-archive", "oci-layout"}}
	cmd.Flags().Var(format, "format", "format: "+strings.Join(format.of, ", "))
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if file == "" {
			return usage(cmd, "say where to with -f FILE")
		}
		req.Images, req.Format = args, format.value
		var out io.Writer
		finish := func() error { return nil }
		switch {
		case format.value == "oci-layout":
			if file == "-" {
				return usage(cmd, "an OCI layout is a directory; name it with -f DIR")
			}
			if req.Path, err = filepath.Abs(file); err != nil {
				return err
			}
			out = io.Discard
		case file == "-":
			if f, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return usage(cmd, "an archive is not for a terminal; name a file with -f FILE")
			}
			out = cmd.OutOrStdout()
		default:
			f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
			if err != nil {
				return fileError(err)
			}
			defer os.Remove(f.Name())
			defer f.Close()
			out = f
			finish = func() error {
				if err := f.Chmod(0o644); err != nil {
					return err
				}
				if err := f.Close(); err != nil {
					return err
				}
				return os.Rename(f.Name(), file)
			}
		}
		stream, err := a.client().images.Export(cmd.Context(), connect.NewRequest(req))
		if err != nil {
			return err
		}
		defer stream.Close()
		var n int64
		for stream.Receive() {
			if _, err := out.Write(stream.Msg().Data); err != nil {
				return err
			}
			n += int64(len(stream.Msg().Data))
		}
		if err := stream.Err(); err != nil {
			return err
		}
		if err := finish(); err != nil {
			return err
		}
		if n > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s written\n", size(n))
		}
		return nil
	}
	return cmd
}
