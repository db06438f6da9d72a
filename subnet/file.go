package subnet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// OpenFile opens a file in a directory where another user may have put what they like, to read it: it follows no link,
// does not wait for the writer of a FIFO, and takes nothing but a regular file of at most limit bytes. The error wraps
// [io/fs.ErrNotExist] if there is none.
func OpenFile(path string, limit int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, which is not followed: put the file itself there", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > limit) {
		err = fmt.Errorf("%s is not a file of at most %d bytes", path, limit)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ReadFile reads a file of at most 64 KiB as [OpenFile] opens it.
func ReadFile(path string) ([]byte, error) {
	f, err := OpenFile(path, maxDocument)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDocument)) // it may have grown since
}
