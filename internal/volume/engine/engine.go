// Package engine is the small interface between the domain of volumes and what
// keeps their bytes. Today the one engine is the pool (internal/volume/pool): an
// image file a volume. Snapshots, clones and engines past one machine come as
// further, optional interfaces that an engine may implement.
//
// Every engine passes the suite of package enginetest.
package engine

import "context"

// ID names a volume within its engine: a lower-case UUID. The caller makes it up.
type ID string

// Engine keeps volumes: named block devices of a fixed size that read as zeros
// until written.
//
// All methods are safe for concurrent use, also on one volume: an engine
// serialises what must be serial. A process that dies in the middle of any method
// leaves a state in which calling the method again completes it, and in which
// Delete removes everything. What a device has acknowledged a flush for survives
// the loss of power.
type Engine interface {
	// Create makes a volume of exactly sizeBytes, a multiple of 1 MiB. It is durable when Create
	// returns. A volume of that ID is an errs.AlreadyExists error, whatever its
	// size; no space is an errs.ResourceExhausted error.
	Create(ctx context.Context, id ID, sizeBytes int64) error

	// Delete removes the volume and its data. One that is not there is no error;
	// one that is attached is an errs.InUse error and stays whole.
	Delete(ctx context.Context, id ID) error

	// Attach makes the volume a block device of this host, or finds the device
	// that it already is: a volume never has two. A volume that does not exist
	// is an errs.NotFound error.
	Attach(ctx context.Context, id ID, use Use) (*Device, error)

	// Detach takes the device away: at once if nothing uses it, else as soon as
	// its last user lets go, which Detach waits for until the context ends;
	// then it is an errs.InUse error. A volume that is not attached, or does not
	// exist, is no error.
	Detach(ctx context.Context, id ID) error

	// Attached returns the device path of every attached volume. It asks the
	// kernel, so it is right after a crash and counts devices that only another
	// mount namespace keeps alive.
	Attached(ctx context.Context) (map[ID]string, error)

	// Expand makes the volume larger, attached or not; the device has the new
	// size when Expand returns. A size that it already has is no error, a
	// smaller one an errs.Invalid error, no space errs.ResourceExhausted.
	Expand(ctx context.Context, id ID, sizeBytes int64) error

	// Replace changes the data of a volume that is not attached as a whole: edit
	// is given a file that holds a copy, and what it leaves there becomes the
	// volume if it returns nil. After a crash the volume is the old or the new
	// one. An engine may copy lazily, but never so that edit can harm the volume.
	// An attached volume is an errs.InUse error.
	Replace(ctx context.Context, id ID, edit func(path string) error) error

	// Stat returns size and use of one volume, or an errs.NotFound error.
	Stat(ctx context.Context, id ID) (Stat, error)

	// List returns every volume there is.
	List(ctx context.Context) ([]ID, error)

	// Space tells how much the engine can hold.
	Space(ctx context.Context) (Space, error)

	// Close lets go of the engine's own descriptors. Devices stay as they are.
	Close() error

	// Teardown takes away everything that the engine made on this host but the
	// data: its devices, mounts. Volumes must be unmounted first.
	Teardown(ctx context.Context) error
}

// Use says what a device is attached for. All uses of one volume must have the same sector size.
type Use struct {
	// Stay keeps the device until Detach. Without it, the device goes away by
	// itself when the returned Device is closed and nothing has it mounted or open: a
	// process that dies before it mounted leaves nothing.
	Stay bool
	// SectorBytes is the smallest block that can be addressed, 512 or 4096. With 4096
	// the engine can always go around the page cache, with 512 not for
	// volumes that share blocks with a snapshot.
	SectorBytes uint32
}

// Device is an attached volume, held open by this process.
type Device struct {
	Path    string // of the block device node
	Release func() error
}

// Close lets go of the device. One that is mounted or to stay stays.
func (d *Device) Close() error {
	if d == nil || d.Release == nil {
		return nil
	}
	r := d.Release
	d.Release = nil
	return r()
}

// Stat describes one volume.
type Stat struct {
	SizeBytes int64 // of the device
	UsedBytes int64 // taken in the engine; holes and trimmed blocks are not counted
}

// Space describes an engine. The difference between capacity and the sum of all
// volumes' sizes is what can be promised.
type Space struct {
	CapacityBytes int64 // that all volumes together can ever take, the host's limits included
	UsedBytes     int64 // taken now
	FreeBytes     int64 // that can be written now before something is full
}
