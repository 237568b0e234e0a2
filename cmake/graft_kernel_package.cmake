# Written by the kernels room: see graft_add_kernel_package() below.
function(graft_add_kernel_package name)
endfunction()
