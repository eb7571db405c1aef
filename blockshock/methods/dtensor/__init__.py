"""What a user would pick today: the rows are registered here; torch's DTensor is imported when one is built."""

from blockshock.methods.dtensor import rows
