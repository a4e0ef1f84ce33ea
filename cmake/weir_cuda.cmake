# CUDA: found at build time -> compiled in. The toolkit is looked for in WEIR_CUDA_ROOT, in .cuda (where
# `make cuda-toolkit` puts the pinned one), in /usr/local/cuda and on PATH.
set(WEIR_CUDA AUTO CACHE STRING "Compile the CUDA kernels: AUTO (when a toolkit is found), ON, OFF")
set(WEIR_CUDA_ROOT "" CACHE PATH "Folder of a CUDA toolkit, 12.8 or newer")
set(WEIR_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING
    "What the kernels are compiled for: machine code (real) and PTX for newer GPUs (virtual)")

set(WEIR_HAS_CUDA 0)
if(NOT WEIR_CUDA STREQUAL "OFF")
  find_program(WEIR_NVCC nvcc NO_CACHE NO_DEFAULT_PATH
               PATHS ${WEIR_CUDA_ROOT}/bin ${CMAKE_SOURCE_DIR}/.cuda/nvidia/cu13/bin /usr/local/cuda/bin)
  if(NOT WEIR_NVCC)
    find_program(WEIR_NVCC nvcc NO_CACHE)
  endif()
  if(WEIR_NVCC)
    get_filename_component(root ${WEIR_NVCC} REALPATH)
    get_filename_component(root ${root} DIRECTORY)
    get_filename_component(root ${root} DIRECTORY)
    set(CMAKE_CUDA_COMPILER ${WEIR_NVCC})
    set(CUDAToolkit_ROOT ${root})
    set(CMAKE_CUDA_ARCHITECTURES ${WEIR_CUDA_ARCHITECTURES})
    if(WEIR_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${WEIR_CCACHE})
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    # CMake 3.25 knows nvcc's dialects up to C++17 only.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    # Not FindCUDAToolkit: that of CMake 3.25 stumbles over CUDA 13, which has no libnvToolsExt.
    find_library(WEIR_CUDART NAMES libcudart_static.a NO_CACHE REQUIRED NO_DEFAULT_PATH
                 PATHS ${root}/lib64 ${root}/lib ${root}/targets/x86_64-linux/lib)
    set(WEIR_CUDA_INCLUDE ${root}/include)
    set(WEIR_HAS_CUDA 1)
    message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${root}, for ${WEIR_CUDA_ARCHITECTURES}")
  elseif(WEIR_CUDA STREQUAL "ON")
    message(FATAL_ERROR "WEIR_CUDA=ON, but no nvcc was found. `make cuda-toolkit` fetches a toolkit.")
  else()
    message(STATUS "CUDA: no toolkit found, the server will run on the CPU only")
  endif()
endif()
target_compile_definitions(weir_flags INTERFACE WEIR_HAS_CUDA=${WEIR_HAS_CUDA})
# Every launch checks for errors itself; line numbers cost nothing at run time and name the culprit.
target_compile_options(weir_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;-Xcompiler=-Wall>")
