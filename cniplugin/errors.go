package main

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// The plugin's own error codes; CNI leaves those from 100 on to plugins.
const (
	codeState    uint = 100 + iota // the file of an attachment is unusable
	codeDelegate                   // a delegate failed and gave no code of its own
)

// failf makes the error that the runtime is shown.
func failf(code uint, format string, args ...any) error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// codeOf returns the CNI code of err, or other if it has none.
func codeOf(err error, other uint) uint {
	if e, ok := errors.AsType[*types.Error](err); ok && e.Code != types.ErrUnknown {
		return e.Code
	}
	return other
}

// withDetail adds to err what else went wrong. The skeleton prints one CNI error and drops what is wrapped around
// it, so a joined error would lose a half.
func withDetail(err, other error) error {
	return types.NewError(codeOf(err, types.ErrInternal), err.Error(), other.Error())
}
