package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/migrate"
	"github.com/spf13/cobra"
)

func (a *app) migrateCommand() *cobra.Command {
	return group("migrate", "Move in from another container runtime", `  orlop migrate containerd --dry-run
  orlop migrate crio --out /etc/orlop/config.yaml`,
		a.migrateContainerdCommand(), a.migrateCRIOCommand())
}

// migration are the flags of every runtime.
type migration struct {
	root, config, out string
	dryRun            bool
	noImages          bool
}

func (m *migration) flags(cmd *cobra.Command, root, config string) {
	f := cmd.Flags()
	f.StringVar(&m.root, "root", root, "directory of its images")
	f.StringVar(&m.config, "config", config, "its configuration file; '' for none")
	f.StringVar(&m.out, "out", "orlop.yaml", "file for the configuration that corresponds to it, which must not exist")
	f.BoolVar(&m.dryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&m.noImages, "no-images", false, "the configuration alone")
}

const migrateLong = `It changes nothing of the other runtime, which may run or not. What of its
configuration has no counterpart is said line by line. Images that are here already are passed over, so the
command may be repeated. What is imported was verified by nobody: where image.policy asks for signatures, such
an image is pulled again before it runs.`

func (a *app) migrateContainerdCommand() *cobra.Command {
	var m migration
	var namespaces []string
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Take over containerd's images and configuration",
		Long:  "Imports the images of containerd's store, with their names, and writes a configuration that corresponds to its own.\n" + migrateLong,
		Example: `  orlop migrate containerd --dry-run
  orlop migrate containerd --out /etc/orlop/config.yaml
  orlop migrate containerd --root /mnt/old/var/lib/containerd --config /mnt/old/etc/containerd/config.toml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := m.settings(cmd, func() (migrate.Settings, error) { return migrate.ContainerdSettings(m.config) }, m.config != "")
			if err != nil || m.noImages {
				return err
			}
			images, err := migrate.Containerd(cmd.Context(), m.root, namespaces)
			if err != nil {
				return err
			}
			return a.migrateImages(cmd, m, images)
		},
	}
	m.flags(cmd, "/var/lib/containerd", "/etc/containerd/config.toml")
	cmd.Flags().StringSliceVar(&namespaces, "from", migrate.ContainerdNamespaces, "containerd's namespaces")
	return cmd
}

func (a *app) migrateCRIOCommand() *cobra.Command {
	var m migration
	var registries string
	cmd := &cobra.Command{
		Use:   "crio",
		Short: "Take over CRI-O's images and configuration",
		Long: `Imports the images of the store that CRI-O shares with podman, with their names, and writes a configuration that
corresponds to CRI-O's own and to registries.conf.
` + migrateLong,
		Example: `  orlop migrate crio --dry-run
  orlop migrate crio --out /etc/orlop/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := m.settings(cmd, func() (migrate.Settings, error) { return migrate.CRIOSettings(m.config, registries) }, m.config != "" || registries != "")
			if err != nil || m.noImages {
				return err
			}
			images, err := migrate.CRIO(cmd.Context(), m.root)
			if err != nil {
				return err
			}
			return a.migrateImages(cmd, m, images)
		},
	}
	m.flags(cmd, "/var/lib/containers/storage", "/etc/crio/crio.conf")
	cmd.Flags().StringVar(&registries, "registries", "/etc/containers/registries.conf", "file of registries and mirrors; '' for none")
	return cmd
}

// settings writes the configuration. A file of the other runtime that is not there is
// no reason not to move its images.
func (m *migration) settings(cmd *cobra.Command, read func() (migrate.Settings, error), wanted bool) error {
	if !wanted {
		return nil
	}
	if _, err := os.Lstat(m.out); err == nil && !m.dryRun {
		return errs.New(errs.AlreadyExists, "%s is there already; move it away, or name another file with --out (or no configuration: --config '')", m.out)
	}
	s, err := read()
	if errors.Is(err, errs.NotFound) {
		fmt.Fprintf(cmd.ErrOrStderr(), "no configuration is written: %v\n", err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range s.Notes {
		fmt.Fprintf(cmd.OutOrStdout(), "not carried over: %s\n", n)
	}
	if m.dryRun {
		fmt.Fprintf(cmd.OutOrStdout(), "%s would be:\n%s", m.out, s.YAML)
		return nil
	}
	f, err := os.OpenFile(m.out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fileError(err)
	}
	_, err = f.Write(s.YAML)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(m.out)
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "configuration written to %s (%d settings were not carried over)\n", m.out, len(s.Notes))
	return nil
}

// migrateImages has the daemon import the images.
func (a *app) migrateImages(cmd *cobra.Command, m migration, images []migrate.Image) error {
	out := cmd.OutOrStdout()
	here := make(map[string]bool)
	if !m.dryRun {
		have, err := call(cmd.Context(), a.client().images.List, &orlopv1.ListImagesRequest{})
		if err != nil {
			return err
		}
		for _, i := range have.Images {
			for _, n := range append(i.Names, i.Digests...) {
				here[n] = true
			}
		}
	}
	var moved, failed int
	for i := range images {
		img := &images[i]
		switch {
		case img.Missing != nil:
			fmt.Fprintf(out, "image %s: not imported: %v\n", img, img.Missing)
			failed++
			continue
		case m.dryRun:
			fmt.Fprintf(out, "image %s: would be imported, %s\n", img, size(img.SizeBytes))
			continue
		}
		complete := len(img.Names) > 0
		for _, n := range img.Names {
			complete = complete && here[n]
		}
		if complete {
			fmt.Fprintf(out, "image %s: is here already\n", img)
			continue
		}
		got, err := a.importArchive(cmd.Context(), img)
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		var dial *dialError
		if errors.As(err, &dial) {
			return err
		}
		if err != nil {
			fmt.Fprintf(out, "image %s: not imported: %v\n", img, err)
			failed++
			continue
		}
		for _, g := range got {
			fmt.Fprintf(out, "image %s: imported, %s\n", img, shortID(g.Id))
		}
		moved++
	}
	if !m.dryRun {
		fmt.Fprintf(out, "%d of %d images imported, %d could not be\n", moved, len(images), failed)
	}
	if failed > 0 {
		return errs.New(errs.FailedPrecondition, "%d images could not be imported; they are pulled when they are needed", failed)
	}
	return nil
}

// importArchive writes the image's archive to the daemon.
func (a *app) importArchive(ctx context.Context, img *migrate.Image) ([]*orlopv1.Image, error) {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := img.WriteArchive(ctx, w)
		w.CloseWithError(err)
		written <- err
	}()
	got, err := a.importImages(ctx, &orlopv1.ImportImageRequest_Start{}, r, func(*orlopv1.LayerProgress) {})
	r.CloseWithError(io.ErrClosedPipe) // where the daemon ended it
	werr := <-written
	if err != nil && werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return nil, werr // why the daemon did not get all of it
	}
	return got, err
}
