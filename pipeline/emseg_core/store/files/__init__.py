"""Files on a disk or an object store: addresses, atomic writes, leases, records and the classification of errors."""
