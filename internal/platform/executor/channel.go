package executor

// channel is the parent's end of the socket to the child.
type channel struct{}

func (c *channel) close() {}
